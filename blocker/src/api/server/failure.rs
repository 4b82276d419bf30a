//! Failed requests: the problem (RFC 9457) and the HTTP status of each error.

use std::convert::Infallible;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::controller::Error;
use crate::ruleset::RulesetError;
use crate::wire::{Code, Problem};

/// A failed request, as the caller gets it.
#[derive(Debug)]
pub(super) struct Failure(Problem);

impl Failure {
    pub(super) fn new(status: StatusCode, code: Code, title: &str, detail: String) -> Self {
        Self(Problem {
            kind: "about:blank".to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            code,
        })
    }

    pub(super) fn invalid(detail: String) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            Code::InvalidInput,
            "invalid input",
            detail,
        )
    }

    /// The problem, for an answer that is not made by axum.
    pub(super) fn into_problem(self) -> Problem {
        self.0
    }

    /// Too many requests or streams at once.
    pub(super) fn busy(detail: String) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::Busy,
            "too many at once",
            detail,
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        let (status, code, title) = match &error {
            Error::Rule(_)
            | Error::RuleOf { .. }
            | Error::Packet(_)
            | Error::Ruleset(RulesetError::Twice(_))
            | Error::Config(_) => (StatusCode::BAD_REQUEST, Code::InvalidInput, "invalid input"),
            Error::Compile(_) | Error::TooManyRules { .. } => (
                StatusCode::BAD_REQUEST,
                Code::LimitExceeded,
                "limit exceeded",
            ),
            Error::Refused(refusal) if refusal.overridable => (
                StatusCode::CONFLICT,
                Code::Refused,
                "refused to protect you",
            ),
            Error::Refused(_) => (StatusCode::CONFLICT, Code::Protected, "protected"),
            Error::Taken { .. } | Error::Ruleset(RulesetError::Taken { .. }) => {
                (StatusCode::CONFLICT, Code::Conflict, "id taken")
            }
            Error::InForce { .. } => (StatusCode::CONFLICT, Code::Conflict, "in force already"),
            Error::NoSuchRule { .. } => (StatusCode::NOT_FOUND, Code::NotFound, "no such rule"),
            Error::Datapath(_)
            | Error::State(_)
            | Error::NeedsRestart { .. }
            | Error::Inside(_) => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "failed"),
        };
        Self::new(status, code, title, detail)
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        let failure = Self::invalid(rejection.body_text());
        Self(Problem {
            status: rejection.status().as_u16(),
            ..failure.0
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let media_type = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, media_type, Json(&self.0)).into_response();
        // For the log, which is written where the caller is known.
        response.extensions_mut().insert(self.0);
        response
    }
}

impl From<Infallible> for Failure {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
