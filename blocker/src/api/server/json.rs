//! JSON bodies of requests.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

/// A JSON body. [`Json`] reports where a body is wrong, but tracking that takes half as long again, which
/// shows for a million targets. So it is used only for a body that plain `serde_json` rejects.
pub(super) struct Sent<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = JsonRejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, JsonRejection> {
        let kind = request.headers().get(CONTENT_TYPE);
        let request = if kind.is_some_and(|kind| kind == "application/json") {
            let (parts, body) = request.into_parts();
            let whole = Request::from_parts(parts.clone(), body);
            let bytes = Bytes::from_request(whole, state).await?;
            let text = str::from_utf8(&bytes).ok();
            if let Some(sent) = text.and_then(|text| serde_json::from_str(text).ok()) {
                return Ok(Self(sent));
            }
            Request::from_parts(parts, Body::from(bytes))
        } else {
            request
        };
        let Json(sent) = Json::from_request(request, state).await?;
        Ok(Self(sent))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::rule::RuleSpec;

    /// The targets that a body names, or what it is answered with.
    async fn read(kind: &str, body: &[u8]) -> Result<String, (StatusCode, String)> {
        let request = Request::post("/").header(CONTENT_TYPE, kind);
        let request = request.body(Body::from(body.to_vec())).unwrap();
        let sent = Sent::<RuleSpec>::from_request(request, &()).await;
        sent.map(|Sent(spec)| spec.targets[0].to_string())
            .map_err(|rejection| (rejection.status(), rejection.body_text()))
    }

    async fn refusal(kind: &str, body: &[u8]) -> (StatusCode, String) {
        read(kind, body).await.expect_err("it is wrong")
    }

    #[tokio::test]
    async fn what_is_json_is_read_under_each_name_of_it() {
        for kind in [
            "application/json",
            "application/json; charset=utf-8",
            "application/x+json",
        ] {
            let sent = read(kind, br#"{"targets": ["192.0.2.7"]}"#).await;
            assert_eq!(sent.as_deref(), Ok("192.0.2.7"), "{kind}");
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_named_with_its_place() {
        let wrong = br#"{"targets": ["192.0.2.7", "192.0.2"]}"#;
        let (status, said) = refusal("application/json", wrong).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(said.contains("targets[1]"), "{said}");
        for broken in [&br#"{"targets": ["#[..], b"\xff"] {
            let (status, said) = refusal("application/json", broken).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        }
        let (status, said) = refusal("text/plain", br#"{"targets": []}"#).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{said}");
        // axum's own limit, where none is set: 2 MiB.
        let (status, said) = refusal("application/json", &vec![b' '; (2 << 20) + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{said}");
    }
}
