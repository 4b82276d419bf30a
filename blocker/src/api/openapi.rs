//! `GET /openapi.json`: the control API as OpenAPI 3.1 (<https://spec.openapis.org/oas/v3.1.0>).
//!
//! The schemas are generated from [`crate::wire`] and the requests' options. This file says which
//! operation takes and returns which of them. A test compares it with the server's routes.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::server::{ChangeOptions, DeleteOptions, LeaseOptions};
use crate::rule::RuleId;
use crate::wire::{
    AddRequest, AddResponse, ConfirmResponse, DeleteResponse, EventsRequest, ExplainRequest,
    ExplainResponse, FEW_TARGETS, FlowsRequest, FlowsResponse, LeaseLine, LeaseRequest,
    ListResponse, Problem, RETURN_MINIMAL, RuleView, RulesetRequest, RulesetResponse,
    SSH_CONNECTION_HEADER, Stats, Status, event::Event,
};

/// The document, made once per process.
#[must_use]
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(write);
    &DOCUMENT
}

const JSON: &str = "application/json";
/// A stream: one object per line.
const NDJSON: &str = "application/x-ndjson";
/// The place of schemas in the document.
const SCHEMAS: &str = "/components/schemas";

fn write() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = SCHEMAS.into();
        settings.meta_schema = None;
    });
    let mut writer = Writer {
        generator: settings.into_generator(),
        paths: Map::new(),
    };
    writer.rules();
    writer.reads();
    writer.streams();
    let problem = writer.schema::<Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "blocker",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "The control API of blocker, over a Unix socket.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{
            "url": "http://localhost",
            "description": "The control socket; the host name is of no account.",
        }],
        "paths": writer.paths,
        "components": {
            "schemas": writer.generator.take_definitions(true),
            "responses": {"Problem": {
                "description": "It did not happen, and nothing was changed (RFC 9457).",
                "content": {"application/problem+json": {"schema": problem}},
            }},
        },
    })
}

struct Operation {
    /// Method and path.
    route: (&'static str, &'static str),
    id: &'static str,
    summary: &'static str,
    /// The answer on success.
    answer: Value,
    /// The statuses of its problems, besides those of every operation: 400, 403, 500 and 503 (busy).
    fails: &'static [&'static str],
    /// Parameters and body, in OpenAPI's terms.
    asks: Value,
}

struct Writer {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Writer {
    /// Operations that change or list rules.
    fn rules(&mut self) {
        let answer = self.content::<ListResponse>(JSON, "The rules, by id.");
        self.add(Operation {
            route: ("get", "/v1/rules"),
            id: "listRules",
            summary: "Lists the rules in force.",
            answer,
            fails: &[],
            asks: json!({}),
        });

        let answer = self.content::<AddResponse>(JSON, "The rule is in force.");
        let mut asks = self.asks::<ChangeOptions, AddRequest>();
        if let Some(parameters) = asks["parameters"].as_array_mut() {
            parameters.push(json!({
                "name": "prefer", "in": "header", "schema": {"type": "string"},
                "description": format!(
                    "`{RETURN_MINIMAL}`: the answer names the first {FEW_TARGETS} targets only (RFC 7240)."
                ),
            }));
        }
        self.add(Operation {
            route: ("post", "/v1/rules"),
            id: "addRule",
            summary: "Adds a rule. One that is there already with the same effect is no error.",
            answer,
            fails: &["409"],
            asks,
        });

        let answer = self.content::<DeleteResponse>(JSON, "What was lifted.");
        let asks = json!({"parameters": self.query::<DeleteOptions>()});
        self.add(Operation {
            route: ("delete", "/v1/rules"),
            id: "deleteRules",
            summary: "Lifts all rules of owner api, or one target wherever it is.",
            answer,
            fails: &["404"],
            asks,
        });

        let id = self.schema::<RuleId>();
        let named = json!({"parameters": [{
            "name": "id", "in": "path", "required": true, "schema": id,
            "description": "The rule's id.",
        }]});
        let answer = self.content::<RuleView>(JSON, "The rule.");
        self.add(Operation {
            route: ("get", "/v1/rules/{id}"),
            id: "showRule",
            summary: "Shows a rule.",
            answer,
            fails: &["404"],
            asks: named.clone(),
        });
        let answer = self.content::<DeleteResponse>(JSON, "It is lifted.");
        self.add(Operation {
            route: ("delete", "/v1/rules/{id}"),
            id: "deleteRule",
            summary: "Lifts a rule.",
            answer,
            fails: &["404"],
            asks: named.clone(),
        });
        let answer = self.content::<ConfirmResponse>(JSON, "It stays.");
        self.add(Operation {
            route: ("post", "/v1/rules/{id}/confirm"),
            id: "confirmRule",
            summary: "Confirms a rule that reverts otherwise.",
            answer,
            fails: &["404"],
            asks: named,
        });

        let answer = self.content::<RulesetResponse>(JSON, "What changed.");
        let asks = self.asks::<ChangeOptions, RulesetRequest>();
        self.add(Operation {
            route: ("put", "/v1/ruleset"),
            id: "replaceRuleset",
            summary: "Replaces all rules of owner api, at once.",
            answer,
            fails: &["409"],
            asks,
        });
    }

    /// Operations that only read.
    fn reads(&mut self) {
        let answer = self.content::<Status>(JSON, "How the daemon fares.");
        self.add(Operation {
            route: ("get", "/v1/status"),
            id: "status",
            summary: "Tells how the daemon fares.",
            answer,
            fails: &[],
            asks: json!({}),
        });
        let answer = self.content::<Stats>(JSON, "Totals, to make rates of.");
        self.add(Operation {
            route: ("get", "/v1/stats"),
            id: "stats",
            summary: "Reads all counters at once.",
            answer,
            fails: &[],
            asks: json!({}),
        });
        let answer = self.content::<FlowsResponse>(JSON, "The flows, and what is not among them.");
        let asks = json!({"parameters": self.query::<FlowsRequest>()});
        self.add(Operation {
            route: ("get", "/v1/flows"),
            id: "listFlows",
            summary: "Lists flows that rules decided.",
            answer,
            fails: &[],
            asks,
        });
        let answer = self.content::<ExplainResponse>(JSON, "What becomes of the packet.");
        let asks = json!({"requestBody": self.body::<ExplainRequest>()});
        self.add(Operation {
            route: ("post", "/v1/explain"),
            id: "explain",
            summary: "Tells what becomes of a packet, and which rules have a say in it.",
            answer,
            fails: &[],
            asks,
        });
        let text = json!({"schema": {"type": "string"}});
        let answer = json!({
            "description": "Prometheus' text format, or OpenMetrics, by the Accept header.",
            "content": {"text/plain": text, "application/openmetrics-text": text},
        });
        self.add(Operation {
            route: ("get", "/metrics"),
            id: "metrics",
            summary: "Reads the metrics.",
            answer,
            fails: &[],
            asks: json!({}),
        });
        let answer = json!({
            "description": "This document.",
            "content": {JSON: {"schema": {"type": "object"}}},
        });
        self.add(Operation {
            route: ("get", "/openapi.json"),
            id: "openapi",
            summary: "Describes the API.",
            answer,
            fails: &[],
            asks: json!({}),
        });
    }

    /// Streams.
    fn streams(&mut self) {
        let answer = self.content::<Event>(NDJSON, "Events, an object a line, as they happen.");
        let asks = json!({"parameters": self.query::<EventsRequest>()});
        self.add(Operation {
            route: ("get", "/v1/events"),
            id: "watchEvents",
            summary: "Tells what happens, as it happens. Ends with the connection.",
            answer,
            fails: &[],
            asks,
        });
        let answer = self.content::<LeaseLine>(
            NDJSON,
            "The first line says that the rules hold; one a second, that they still do.",
        );
        let asks = self.asks::<LeaseOptions, LeaseRequest>();
        self.add(Operation {
            route: ("post", "/v1/leases"),
            id: "holdRules",
            summary: "Holds rules as long as the connection lasts.",
            answer,
            fails: &["404", "409"],
            asks,
        });
    }

    fn add(&mut self, operation: Operation) {
        let Operation {
            route: (method, path),
            id,
            summary,
            answer,
            fails,
            mut asks,
        } = operation;
        let problem = json!({"$ref": "#/components/responses/Problem"});
        let mut responses = json!({
            "200": answer, "400": problem, "403": problem, "500": problem, "503": problem,
        });
        for status in fails {
            responses[status] = problem.clone();
        }
        if asks.get("requestBody").is_some() {
            // A body that is too long, or whose media type is not JSON.
            responses["413"] = problem.clone();
            responses["415"] = problem.clone();
            responses["422"] = problem;
        }
        asks["operationId"] = json!(id);
        asks["summary"] = json!(summary);
        asks["responses"] = responses;
        let operations = self.paths.entry(path).or_insert_with(|| json!({}));
        operations[method] = asks;
    }

    /// Options and a body. A request that may block the caller names the caller's SSH session.
    fn asks<O: JsonSchema, B: JsonSchema>(&mut self) -> Value {
        let mut parameters = self.query::<O>();
        parameters.push(json!({
            "name": SSH_CONNECTION_HEADER, "in": "header", "schema": {"type": "string"},
            "description": "The caller's SSH_CONNECTION (sshd(8)), so that its own session is spared.",
        }));
        json!({"parameters": parameters, "requestBody": self.body::<B>()})
    }

    fn body<T: JsonSchema>(&mut self) -> Value {
        json!({"required": true, "content": {JSON: {"schema": self.schema::<T>()}}})
    }

    fn content<T: JsonSchema>(&mut self, kind: &str, description: &str) -> Value {
        json!({"description": description, "content": {kind: {"schema": self.schema::<T>()}}})
    }

    fn schema<T: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<T>().to_value()
    }

    /// The fields of a request's options as parameters of its query. Lists are separated by commas.
    fn query<T: JsonSchema>(&mut self) -> Vec<Value> {
        let schema = T::json_schema(&mut self.generator).to_value();
        let fields = schema["properties"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let parameter = |(name, mut schema): (String, Value)| {
            let description = schema
                .as_object_mut()
                .and_then(|schema| schema.remove("description"));
            json!({
                "name": name, "in": "query", "required": false, "schema": schema,
                "description": description, "style": "form", "explode": false,
            })
        };
        fields.into_iter().map(parameter).collect()
    }
}

#[cfg(test)]
mod tests;
