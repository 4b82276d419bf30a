//! Metrics for Prometheus, in the text formats that scrapers read.
//!
//! Owns names, units, labels and the two formats. Counts only the API's requests itself: everything
//! else is read from the controller at each scrape, so metrics cost nothing between two scrapes. Series are bounded by `limits.rules`, the attached devices and the API's
//! endpoints, never by flows or addresses.

mod form;
mod listener;
mod series;

use std::sync::Arc;

use axum::http::{HeaderMap, Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::controller::{Controller, Error};
use form::Form;
use series::Series;

pub use listener::{BindError, Listener, bind};

/// The metrics of one daemon. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Metrics {
    controller: Controller,
    requests: Family<Request, Counter>,
    /// Allows one scrape at a time: changes wait while it reads the counters.
    reading: Arc<tokio::sync::Mutex<()>>,
}

/// A kind of request to the API.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    endpoint: String,
    code: u16,
}

/// Metrics as text, and what kind of text.
pub struct Scrape {
    /// For the header `Content-Type`.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Metrics {
    /// The metrics of a controller's daemon.
    #[must_use]
    pub fn new(controller: Controller) -> Self {
        Self {
            controller,
            requests: Family::default(),
            reading: Arc::default(),
        }
    }

    /// Counts a request to the API that was answered. `endpoint` is a route's pattern, of which
    /// there are few; all requests that matched none are counted as "other".
    pub fn answered(&self, method: &Method, endpoint: Option<&str>, code: StatusCode) {
        let request = Request {
            method: known(method),
            endpoint: endpoint.unwrap_or("other").to_owned(),
            code: code.as_u16(),
        };
        self.requests.get_or_create(&request).inc();
    }

    /// All metrics, in the format that these headers of a request ask for.
    ///
    /// # Errors
    /// If counters can't be read.
    pub async fn scrape(&self, headers: &HeaderMap) -> Result<Scrape, Error> {
        let form = Form::of(headers);
        let one_at_a_time = Arc::clone(&self.reading).lock_owned().await;
        let this = self.clone();
        // Reading may wait for a change to be switched to: not on a thread that serves requests.
        let work = move || {
            let _reading = one_at_a_time;
            let series = Series {
                status: this.controller.status()?,
                stats: this.controller.stats()?,
            };
            this.encode(series, form)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Error::Inside(error.to_string()))?
    }

    fn encode(&self, series: Series, form: Form) -> Result<Scrape, Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(series));
        registry.register(
            "blocker_api_requests",
            "Requests to the control socket, answered",
            self.requests.clone(),
        );
        let mut body = String::new();
        let encoded = match form {
            Form::OpenMetrics => text::encode(&mut body, &registry),
            Form::Prometheus => prometheus_text::encode(&mut body, &registry),
        };
        encoded.map_err(|error| Error::Inside(format!("metrics cannot be written: {error}")))?;
        Ok(Scrape {
            content_type: form.content_type(),
            body,
        })
    }
}

/// A method of HTTP itself, or "other": a client must not be able to create series.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
