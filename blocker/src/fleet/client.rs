//! The client of `blockctl fleet`: writes, deletes and holds rules, reads and watches hosts, and asks
//! them questions.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use jiff::SignedDuration;
use tokio::task::JoinHandle;

use super::Keys;
use super::form::Fleet;
use super::link::{LARGEST, Link, LinkError};
use crate::rule::RuleId;
use crate::wire::fleet::report::{Answer, HostReport};
use crate::wire::fleet::value::{self, Value, ValueError};

/// How much longer than its rule a key exists. Hosts go by the deadline in the value.
const BEHIND: SignedDuration = SignedDuration::from_secs(30);
/// How long a question exists, in seconds.
const ASKED: i64 = 30;
/// Time to live of held rules, in seconds: how long they outlive their holder. It is a little longer if
/// etcd loses its leader meanwhile.
const HELD: i64 = 10;
/// How often their lease is renewed.
const RENEWAL: Duration = Duration::from_secs(3);

/// Why a request to the fleet failed.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A request to etcd failed.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// No member of etcd can be reached.
    #[error("{}", each(.0))]
    Unreachable(Vec<LinkError>),
    /// The rule is not valid.
    #[error("{0}")]
    Value(#[from] ValueError),
    /// The id is taken by another rule.
    #[error("id {0} is taken by another rule of the fleet: delete it first, or choose another id")]
    Taken(RuleId),
}

fn each(errors: &[LinkError]) -> String {
    let each: Vec<String> = errors.iter().map(ToString::to_string).collect();
    each.join("\n")
}

/// A rule that is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The last part of its key, which should be its id.
    pub id: String,
    /// etcd's revision at which it was written.
    pub revision: i64,
    /// Whether it has a lease, and so ends with its holder or at its deadline.
    pub leased: bool,
    /// The value, or what is wrong with it.
    pub value: Result<Value, ValueError>,
}

/// The rules, or reports, at a revision.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// etcd's revision.
    pub revision: i64,
    /// All of them.
    pub all: Vec<T>,
}

/// A change in the fleet.
#[derive(Debug, Clone)]
pub enum News {
    /// A rule was written.
    Rule(Box<Stored>),
    /// A rule was deleted.
    RuleGone {
        /// Its id.
        id: String,
        /// etcd's revision.
        revision: i64,
    },
    /// A host reported.
    Host(Box<HostReport>),
    /// A host's report is gone: the host stopped, or its lease expired after a minute.
    HostGone(String),
    /// A host answered a question.
    Answer(Answer),
}

/// A connection to the fleet through one member of its etcd.
pub struct FleetClient {
    link: Link,
    keys: Keys,
}

impl FleetClient {
    /// Connects to the first member that can be reached and has a leader.
    ///
    /// # Errors
    /// No member can be reached.
    pub async fn connect(fleet: &Fleet) -> Result<Self, FleetError> {
        let mut errors = Vec::new();
        for endpoint in &fleet.endpoints {
            let client = async {
                let link = Link::open(fleet, endpoint).await?;
                let client = Self {
                    link,
                    keys: Keys::new(&fleet.prefix),
                };
                // A member without a leader cannot serve requests.
                client.revision().await?;
                Ok::<_, LinkError>(client)
            };
            match client.await {
                Ok(client) => return Ok(client),
                // Every member would answer the same.
                Err(error) if error.is_denied() => return Err(error.into()),
                Err(error) => errors.push(error),
            }
        }
        Err(FleetError::Unreachable(errors))
    }

    async fn revision(&self) -> Result<i64, LinkError> {
        let options = GetOptions::new().with_prefix().with_count_only();
        let mut client = self.link.client.clone();
        let count = client.get(self.keys.rules(), Some(options));
        let count = self.link.ask("looking for rules", count).await?;
        Ok(count
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision))
    }

    /// All rules.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn rules(&self) -> Result<At<Stored>, FleetError> {
        let prefix = self.keys.rules();
        let mut kv = self
            .link
            .client
            .kv_client()
            .max_decoding_message_size(LARGEST);
        let all = kv.get(prefix.clone(), Some(GetOptions::new().with_prefix()));
        let all = self.link.ask("listing rules", all).await?;
        let rules = all.kvs().iter().filter_map(|kv| stored(kv, &prefix));
        Ok(At {
            revision: all
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision),
            all: rules.collect(),
        })
    }

    /// The reports of all hosts, by name.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn hosts(&self) -> Result<At<HostReport>, FleetError> {
        let prefix = self.keys.hosts();
        let mut kv = self
            .link
            .client
            .kv_client()
            .max_decoding_message_size(LARGEST);
        let all = kv.get(prefix, Some(GetOptions::new().with_prefix()));
        let all = self.link.ask("listing hosts", all).await?;
        let reports = all.kvs().iter().filter_map(|kv| {
            let key = kv.key_str().ok()?;
            let report: HostReport = serde_json::from_slice(kv.value()).ok()?;
            // A host may write anything below its own name, but must not report in the name of another.
            (key == self.keys.status(&report.host.name)).then_some(report)
        });
        Ok(At {
            revision: all
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision),
            all: reports.collect(),
        })
    }

    /// Writes a rule and returns etcd's revision. With `replaces`, it replaces the one that was written
    /// at that revision; otherwise the id must be free. The key expires soon after the deadline.
    ///
    /// # Errors
    /// It cannot be written, or the id is taken.
    pub async fn write(
        &self,
        id: &RuleId,
        value: &Value,
        replaces: Option<i64>,
    ) -> Result<i64, FleetError> {
        let lease = match value.rule.expires {
            Some(expires) => {
                let left = expires.duration_since(value.written).saturating_add(BEHIND);
                Some(self.grant(left.as_secs().max(1)).await?)
            }
            None => None,
        };
        self.write_with(id, value, replaces, lease).await
    }

    async fn grant(&self, seconds: i64) -> Result<i64, LinkError> {
        let mut client = self.link.client.clone();
        let granted = client.lease_grant(seconds, None);
        Ok(self.link.ask("asking for a lease", granted).await?.id())
    }

    async fn write_with(
        &self,
        id: &RuleId,
        value: &Value,
        replaces: Option<i64>,
        lease: Option<i64>,
    ) -> Result<i64, FleetError> {
        let key = format!("{}{id}", self.keys.rules());
        let there = match replaces {
            Some(revision) => Compare::mod_revision(key.clone(), CompareOp::Equal, revision),
            None => Compare::create_revision(key.clone(), CompareOp::Equal, 0),
        };
        let options = lease.map(|lease| PutOptions::new().with_lease(lease));
        let put = TxnOp::put(key, value.text()?, options);
        let mut client = self.link.client.clone();
        let written = client.txn(Txn::new().when([there]).and_then([put]));
        let written = self.link.ask("writing the rule", written).await?;
        if !written.succeeded() {
            return Err(FleetError::Taken(id.clone()));
        }
        Ok(written
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision))
    }

    /// Deletes rules as one change. Returns etcd's revision and how many existed.
    ///
    /// # Errors
    /// They cannot be deleted.
    pub async fn delete(&self, ids: &[RuleId]) -> Result<(i64, usize), FleetError> {
        let key = |id: &RuleId| format!("{}{id}", self.keys.rules());
        let deletes: Vec<TxnOp> = ids.iter().map(|id| TxnOp::delete(key(id), None)).collect();
        let mut client = self.link.client.clone();
        let done = client.txn(Txn::new().and_then(deletes));
        let done = self.link.ask("deleting rules", done).await?;
        let responses = done.op_responses();
        let gone = responses.iter().map(|response| match response {
            etcd_client::TxnOpResponse::Delete(delete) => delete.deleted(),
            _ => 0,
        });
        let gone = usize::try_from(gone.sum::<i64>()).unwrap_or(0);
        let revision = done
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        Ok((revision, gone))
    }

    /// Writes a rule that exists as long as the returned value.
    ///
    /// # Errors
    /// It cannot be written, or the id is taken.
    pub async fn hold(&self, id: &RuleId, value: &Value) -> Result<Hold, FleetError> {
        let lease = self.grant(HELD).await?;
        let revision = self.write_with(id, value, None, Some(lease)).await?;
        let link = self.link.clone();
        let mut client = link.client.clone();
        let kept = client.lease_keep_alive(lease);
        let (mut keeper, mut answers) = link.ask("keeping a lease", kept).await?;
        let keeping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                if let Err(error) = super::reporter::renew(&link, &mut keeper, &mut answers).await {
                    return error;
                }
            }
        });
        Ok(Hold { revision, keeping })
    }

    /// Asks all selected hosts what a rule would do.
    ///
    /// # Errors
    /// The question cannot be written.
    pub async fn ask(&self, id: &str, value: &Value) -> Result<(), FleetError> {
        let lease = self.grant(ASKED).await?;
        let options = PutOptions::new().with_lease(lease);
        let mut client = self.link.client.clone();
        let key = format!("{}{id}", self.keys.asks());
        let put = client.put(key, value.text()?, Some(options));
        self.link.ask("asking the hosts", put).await?;
        Ok(())
    }

    /// Watches changes after a revision: of hosts and, if `rules`, of rules.
    ///
    /// # Errors
    /// The watch cannot be started.
    pub async fn watch(&self, behind: i64, rules: bool) -> Result<FleetWatch, FleetError> {
        let options = || {
            let options = WatchOptions::new().with_prefix();
            Some(options.with_start_revision(behind + 1))
        };
        let mut watches = self
            .link
            .client
            .watch_client()
            .max_decoding_message_size(LARGEST);
        let watch = watches.watch(self.keys.hosts(), options());
        let mut watch = self.link.ask("watching hosts", watch).await?;
        if rules {
            let more = watch.watch(self.keys.rules(), options());
            self.link.ask("watching rules", more).await?;
        }
        Ok(FleetWatch {
            endpoint: self.link.endpoint.clone(),
            keys: self.keys.clone(),
            watch,
        })
    }
}

fn stored(kv: &etcd_client::KeyValue, prefix: &str) -> Option<Stored> {
    let id = kv.key_str().ok()?.strip_prefix(prefix)?.to_owned();
    let value = value::id(&id).and_then(|_| Value::parse(kv.value()));
    Some(Stored {
        id,
        revision: kv.mod_revision(),
        leased: kv.lease() != 0,
        value,
    })
}

/// A held rule. When this is dropped, the rule ends with its lease.
pub struct Hold {
    /// etcd's revision at which it was written.
    pub revision: i64,
    keeping: JoinHandle<LinkError>,
}

impl Hold {
    /// Waits until the lease can no longer be renewed, and returns the reason.
    pub async fn lost(&mut self) -> String {
        match (&mut self.keeping).await {
            Ok(error) => error.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// A stream of changes.
pub struct FleetWatch {
    endpoint: String,
    keys: Keys,
    watch: WatchStream,
}

impl FleetWatch {
    /// The next changes: all of one message.
    ///
    /// # Errors
    /// The connection is lost, or etcd ended the watch.
    pub async fn next(&mut self) -> Result<Vec<News>, FleetError> {
        let ended = |endpoint: &str, why: &str| LinkError::Ended {
            endpoint: endpoint.to_owned(),
            why: why.to_owned(),
        };
        let message = self
            .watch
            .message()
            .await
            .map_err(|source| LinkError::Etcd {
                what: "watching",
                endpoint: self.endpoint.clone(),
                source: Box::new(source),
            })?;
        let message = message.ok_or_else(|| ended(&self.endpoint, "the connection closed"))?;
        if message.canceled() {
            return Err(ended(&self.endpoint, message.cancel_reason()).into());
        }
        let (rules, hosts) = (self.keys.rules(), self.keys.hosts());
        let mut news = Vec::new();
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let Ok(key) = kv.key_str() else { continue };
            let put = event.event_type() == EventType::Put;
            if let Some(id) = key.strip_prefix(&rules) {
                news.extend(if put {
                    stored(kv, &rules).map(|stored| News::Rule(Box::new(stored)))
                } else {
                    Some(News::RuleGone {
                        id: id.to_owned(),
                        revision: kv.mod_revision(),
                    })
                });
            } else if let Some(name) = key
                .strip_prefix(&hosts)
                .and_then(|rest| rest.strip_suffix("/status"))
            {
                if put {
                    let report: Option<HostReport> = serde_json::from_slice(kv.value()).ok();
                    let report = report.filter(|report| report.host.name == name);
                    news.extend(report.map(|report| News::Host(Box::new(report))));
                } else {
                    news.push(News::HostGone(name.to_owned()));
                }
            } else if put && key.starts_with(&hosts) {
                let answer: Option<Answer> = serde_json::from_slice(kv.value()).ok();
                news.extend(answer.map(News::Answer));
            }
        }
        Ok(news)
    }
}

/// Reports by name.
#[must_use]
pub fn by_name(reports: Vec<HostReport>) -> BTreeMap<String, HostReport> {
    let named = |report: HostReport| (report.host.name.clone(), report);
    reports.into_iter().map(named).collect()
}
