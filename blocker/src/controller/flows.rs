//! The flows that rules decided, as the datapath recorded them.

use std::cmp::Ordering;
use std::collections::HashSet;

use blocker_ebpf::{FlowId, FlowRecord};

use super::names::{self, Clock};
use super::{Controller, Error, blocking};
use crate::wire::{FlowOrder, FlowView, FlowsRequest, FlowsResponse};

type Flow = (FlowId, FlowRecord);

impl Controller {
    /// The flows that rules decided.
    ///
    /// # Errors
    /// If the datapath's count of recorded flows can't be read.
    pub async fn flows(&self, request: FlowsRequest) -> Result<FlowsResponse, Error> {
        let this = self.clone();
        // A large table takes a while to read.
        blocking(move || this.flows_now(&request)).await
    }

    fn flows_now(&self, request: &FlowsRequest) -> Result<FlowsResponse, Error> {
        self.learn_names();
        let clock = self.0.wall.clock();
        let seen = &self.0.seen;
        // Read before the flows: a flow that is recorded meanwhile must not count as evicted.
        let tally = seen.tally()?;
        let tags: Option<HashSet<u32>> = (!request.rule.is_empty())
            .then(|| self.0.names.tags(&request.rule).into_iter().collect());
        let mut top = Top::new(request.sort, request.limit as usize);
        let present = seen.flows(&mut |id, record| {
            let asked = tags.as_ref().is_none_or(|tags| tags.contains(&id.rule))
                && names::is_in(&request.remote, names::address(id.flow.remote))
                && names::is_protocol(request.protocol, &names::protocol(id.flow.protocol));
            if asked {
                top.push((*id, *record));
            }
        });
        let (flows, truncated) = top.end();
        Ok(FlowsResponse {
            recording: seen.is_recording(),
            flows: flows.iter().map(|flow| self.flow(flow, clock)).collect(),
            truncated,
            evicted: tally.created.saturating_sub(present),
            not_recorded: tally.not_recorded,
        })
    }

    fn flow(&self, (FlowId { flow, rule }, record): &Flow, clock: Clock) -> FlowView {
        FlowView {
            rule: self.0.names.of(*rule),
            protocol: names::protocol(flow.protocol),
            remote: names::address(flow.remote),
            remote_port: flow.remote_port,
            local: names::address(flow.local),
            local_port: flow.local_port,
            interface: self.0.events.device(record.ifindex),
            hook: names::hook(record.hook).0,
            packets: record.packets,
            bytes: record.bytes,
            first_seen: clock.wall(record.first_seen),
            last_seen: clock.wall(record.last_seen),
            last_verdict: names::decision(record.verdict),
        }
    }
}

/// The first `limit` flows in an order, and the number of the others. Its memory is bounded by
/// `limit`, not by the size of the flow table.
struct Top {
    order: FlowOrder,
    limit: usize,
    flows: Vec<Flow>,
    left_out: u64,
}

impl Top {
    const fn new(order: FlowOrder, limit: usize) -> Self {
        Self {
            order,
            limit,
            flows: Vec::new(),
            left_out: 0,
        }
    }

    fn push(&mut self, flow: Flow) {
        self.flows.push(flow);
        if self.flows.len() >= self.limit.saturating_mul(2).saturating_add(1_024) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let order = self.order;
        self.flows.sort_unstable_by(|a, b| compare(order, a, b));
        self.left_out += self.flows.len().saturating_sub(self.limit) as u64;
        self.flows.truncate(self.limit);
    }

    fn end(mut self) -> (Vec<Flow>, u64) {
        self.cut();
        (self.flows, self.left_out)
    }
}

/// Larger numbers first; ties are broken by the flow's key, so that the order is stable.
fn compare(order: FlowOrder, a: &Flow, b: &Flow) -> Ordering {
    let number = |record: &FlowRecord| match order {
        FlowOrder::Packets => record.packets,
        FlowOrder::Bytes => record.bytes,
        FlowOrder::FirstSeen => record.first_seen,
        FlowOrder::LastSeen => record.last_seen,
    };
    let rest = |(id, _): &Flow| {
        let flow = id.flow;
        let ports = (flow.remote_port, flow.local_port);
        (flow.remote, flow.local, ports, flow.protocol, id.rule)
    };
    number(&b.1)
        .cmp(&number(&a.1))
        .then_with(|| rest(a).cmp(&rest(b)))
}

#[cfg(test)]
mod tests {
    use blocker_ebpf::FlowKey;

    use super::*;

    fn flow(port: u16, packets: u64) -> Flow {
        let flow = FlowKey {
            remote: [1; 16],
            local: [2; 16],
            remote_port: port,
            local_port: 80,
            protocol: 6,
        };
        let record = FlowRecord {
            packets,
            bytes: 1_000 - packets.min(1_000),
            first_seen: 1,
            last_seen: 2,
            ifindex: 1,
            verdict: 0,
            hook: 0,
            reserved: 0,
        };
        (FlowId { flow, rule: 0 }, record)
    }

    fn ports(order: FlowOrder, limit: usize, flows: impl Iterator<Item = Flow>) -> (Vec<u16>, u64) {
        let mut top = Top::new(order, limit);
        flows.for_each(|flow| top.push(flow));
        let (flows, left_out) = top.end();
        let ports = flows.iter().map(|(id, _)| id.flow.remote_port);
        (ports.collect(), left_out)
    }

    #[test]
    fn the_first_of_many_are_kept_and_the_others_counted() {
        let many = || (0..50_000).map(|port| flow(port, u64::from(port)));
        assert_eq!(
            ports(FlowOrder::Packets, 3, many()),
            (vec![49_999, 49_998, 49_997], 49_997)
        );
        assert_eq!(ports(FlowOrder::Packets, 0, many()), (vec![], 50_000));
        let few = || (0..10).map(|port| flow(port, u64::from(port)));
        assert_eq!(ports(FlowOrder::Bytes, 2, few()), (vec![0, 1], 8));
        let (all, left_out) = ports(FlowOrder::LastSeen, 10, few());
        assert_eq!(
            (all, left_out),
            ((0..10).collect(), 0),
            "equal ones by their address and port"
        );
    }
}
