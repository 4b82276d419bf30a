//! The API as other programs use it: the documentation's commands are run as written, and the daemon
//! behaves as `/openapi.json` says.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blocker::api::openapi;
use serde_json::Value;
use xtask::hosts::output;

use crate::blocking_pair::BlockingPair;

/// A fenced block of a document.
struct Block {
    language: String,
    text: String,
}

/// The blocks of `docs/integrations.md`, in order.
fn blocks() -> Result<Vec<Block>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/integrations.md");
    let document = std::fs::read_to_string(path)?;
    // Between fences are, in turn, prose and blocks.
    let parts = document.split("```").collect::<Vec<_>>();
    ensure!(parts.len() % 2 == 1, "a fence is open");
    let block = |part: &&str| {
        let (language, text) = part.split_once('\n').context("an empty block")?;
        Ok(Block {
            language: language.to_owned(),
            text: text.to_owned(),
        })
    };
    parts.iter().skip(1).step_by(2).map(block).collect()
}

/// Checks that an answer has all that the documentation shows, of the same types; words, and numbers
/// that are no times, must be equal.
fn has(answer: &Value, shown: &Value, at: &str) {
    match (answer, shown) {
        (Value::Object(answer), Value::Object(shown)) => {
            for (field, shown) in shown {
                let at = format!("{at}.{field}");
                let answer = answer.get(field).unwrap_or_else(|| panic!("no {at}"));
                if !["elapsed_ms", "expires"].contains(&field.as_str()) {
                    has(answer, shown, &at);
                }
            }
        }
        (Value::Array(answer), Value::Array(shown)) => {
            assert_eq!(answer.len(), shown.len(), "{at}");
            for (answer, shown) in answer.iter().zip(shown) {
                has(answer, shown, at);
            }
        }
        _ => assert_eq!(answer, shown, "{at}"),
    }
}

#[test]
fn the_cookbook_does_what_it_says() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let run = |program: &str, text: &str| {
        let mut command = Command::new(program);
        command
            .args(["-c", text])
            .env("BLOCKER_SOCKET", hosts.daemon.socket());
        output(&mut command)?
            .success()
            .with_context(|| text.to_owned())
    };
    let mut before = String::new();
    let mut said = String::new();
    let (mut ran, mut compared) = (0, 0);
    for Block { language, text } in blocks()? {
        match language.as_str() {
            // The first piece is what all others begin with.
            "sh" if before.is_empty() => before = format!("set -euo pipefail\n{text}"),
            "sh" => {
                said = run("bash", &format!("{before}{text}"))?.stdout;
                ran += 1;
            }
            "json" => {
                let answer = serde_json::from_str(&said).with_context(|| said.clone())?;
                has(&answer, &serde_json::from_str(&text)?, "");
                compared += 1;
            }
            "python" => {
                let said = run("python3", &text)?.stdout;
                assert!(said.ends_with("killed 0\n"), "{said}");
                ran += 1;
            }
            other => panic!("what is {other:?} to be run by?"),
        }
    }
    assert!(ran >= 12 && compared >= 4, "{ran} run, {compared} compared");
    Ok(())
}

#[test]
fn what_the_document_of_the_api_lists_is_there_and_nothing_else_is() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let ask = |method: &str, path: &str| -> Result<(String, String)> {
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "--max-time",
                "2",
                "-w",
                "\n%{http_code}",
                "-X",
                method,
            ])
            .arg("--unix-socket")
            .arg(hosts.daemon.socket())
            .arg(format!("http://localhost{path}"));
        let said = output(&mut command)?.stdout;
        let (body, status) = said.rsplit_once('\n').context("no status")?;
        Ok((body.to_owned(), status.to_owned()))
    };
    let (served, _) = ask("GET", "/openapi.json")?;
    assert_eq!(
        &serde_json::from_str::<Value>(&served)?,
        openapi::document()
    );
    let paths = openapi::document()["paths"].as_object().context("paths")?;
    for (path, operations) in paths {
        let real = path.replace("{id}", "dev01");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let (body, status) = ask(method, &real)?;
            let listed = operations.get(method.to_lowercase()).is_some();
            assert_eq!(status != "405", listed, "{method} {path}: {status} {body}");
            if listed {
                let responses = &operations[method.to_lowercase()]["responses"];
                assert!(
                    responses.get(&status).is_some() && !body.contains("there is no /"),
                    "{method} {path}: {status} {body}"
                );
            }
        }
    }
    Ok(())
}
