//! Asks for the blocked flows, of a daemon that keeps records of them.

use std::net::IpAddr;

use blocker::api::client::{Client, ClientError};
use blocker::api::types::Code;
use serde::Deserialize;

/// So many are asked for: more than fit a screen, few enough to be cheap.
const PATH: &str = "/v1/flows?sort=packets&limit=200";

/// A blocked flow.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Flow {
    pub(super) rule: String,
    pub(super) protocol: String,
    pub(super) remote: IpAddr,
    #[serde(default)]
    pub(super) remote_port: u16,
    pub(super) local: IpAddr,
    #[serde(default)]
    pub(super) local_port: u16,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

#[derive(Deserialize)]
struct Answer {
    flows: Vec<Flow>,
}

/// Where flows come from.
#[derive(Debug, Default)]
pub(super) struct Flows {
    /// The daemon has no such endpoint, and won't get one.
    unknown: bool,
}

impl Flows {
    /// The flows with the most packets; `None` if the daemon keeps no records.
    pub(super) async fn ask(&mut self, client: &Client) -> Result<Option<Vec<Flow>>, ClientError> {
        if self.unknown {
            return Ok(None);
        }
        match client.get::<Answer>(PATH).await {
            Ok(answer) => Ok(Some(answer.flows)),
            Err(ClientError::Problem(problem)) if problem.code == Code::NoSuchEndpoint => {
                self.unknown = true;
                Ok(None)
            }
            // The totals, asked for next, say whether the daemon is there.
            Err(ClientError::Lost { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
