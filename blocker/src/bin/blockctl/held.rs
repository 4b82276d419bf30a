//! Rules under a lease: why they ended, lifting them, and their flows.

use blocker::api::client::{Client, ClientError, Lease};
use blocker::rule::RuleId;
use blocker::wire::{Account, Code, DeleteResponse, FlowOrder, FlowsRequest, FlowsResponse};

/// The maximum number of flows in a report.
const FLOWS: u32 = 10_000;

/// Waits for the end of a block; returns why it ended. Cancel-safe.
pub(crate) async fn ended(lease: &mut Lease) -> String {
    match lease.ended().await {
        Ok(()) => "it was lifted, its deadline passed, or the daemon stopped".to_owned(),
        Err(_) => "the daemon is gone; the kernel ends the block within half a minute".to_owned(),
    }
}

/// Lifts a rule. If it is gone already, `removed` is empty: the report says so, and it is not an error.
pub(crate) async fn lift(client: &Client, id: &RuleId) -> Result<DeleteResponse, ClientError> {
    match client.delete(id).await {
        Err(ClientError::Problem(problem)) if problem.code == Code::NotFound => {
            Ok(DeleteResponse {
                removed: Vec::new(),
                narrowed: Vec::new(),
                teardown: Account::default(),
            })
        }
        answer => answer,
    }
}

/// The flows that a rule decided.
pub(crate) async fn flows(client: &Client, id: &RuleId) -> Option<FlowsResponse> {
    let request = FlowsRequest {
        rule: vec![id.clone()],
        sort: FlowOrder::Packets,
        limit: FLOWS,
        ..FlowsRequest::default()
    };
    client.flows(&request).await.ok()
}
