//! The two text formats, and which one a scraper wants.

use axum::http::{HeaderMap, header};
use prometheus_client::encoding::prometheus_text;

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' own, 0.0.4, which `promtool check metrics` and people read.
    Prometheus,
}

impl Form {
    /// OpenMetrics if the scraper accepts it and prefers no other text (RFC 9110, 12.5.1).
    pub fn of(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).iter();
        let ranges: Vec<(&str, f32)> = accepted
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(range)
            .collect();
        let quality = |name: &str| {
            let of_name = ranges.iter().filter(|(range, _)| *range == name);
            of_name.map(|(_, quality)| *quality).fold(0.0, f32::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The media type of the format.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// A media range and how much it is wanted.
fn range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q="));
    let quality = quality.map_or(Some(1.0), |quality| quality.parse().ok());
    (name, quality.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> Form {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Form::of(&headers)
    }

    #[test]
    fn a_scraper_gets_what_it_likes_best() {
        // As Prometheus 2.42 asks, and 3.
        let both = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(form(both), Form::OpenMetrics);
        for (accept, expected) in [
            ("application/openmetrics-text", Form::OpenMetrics),
            ("application/openmetrics-text; q=0", Form::Prometheus),
            (
                "application/openmetrics-text; q=0.2, text/plain; q=0.5",
                Form::Prometheus,
            ),
            ("application/openmetrics-text; q=much", Form::Prometheus),
            ("text/plain", Form::Prometheus),
            ("*/*", Form::Prometheus),
            ("", Form::Prometheus),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
        assert_eq!(Form::of(&HeaderMap::new()), Form::Prometheus);
    }
}
