//! Rules under a lease: what becomes of them, and what they did.

use blocker::api::client::{Client, ClientError, Lease};
use blocker::rule::RuleId;
use blocker::wire::{Account, Code, DeleteResponse, FlowOrder, FlowsRequest, FlowsResponse};

/// How many flows a report names.
const FLOWS: u32 = 10_000;

/// Why a block ended, once it did. May be dropped and called again.
pub(crate) async fn ended(lease: &mut Lease) -> String {
    match lease.ended().await {
        Ok(()) => "somebody lifted it, its deadline passed, or the daemon stopped".to_owned(),
        Err(_) => "the daemon is gone; the kernel ends the block within half a minute".to_owned(),
    }
}

/// Lifts a rule. One that is gone already is no error: of that the report tells.
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
