use super::*;

#[test]
fn every_reference_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    found.push(reference);
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(document(), &mut found);
    assert!(found.len() > 50, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("it is of this document");
        assert!(document().pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn operations_have_names_of_their_own_and_say_what_they_do() {
    let mut names = std::collections::BTreeSet::new();
    let paths = document()["paths"].as_object().expect("there are paths");
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().expect("operations") {
            let name = operation["operationId"].as_str().expect("a name");
            assert!(names.insert(name), "{name} is twice");
            let summary = operation["summary"].as_str().expect("a summary");
            assert!(summary.ends_with('.'), "{method} {path}: {summary}");
            let in_path = path.contains('{');
            let parameters = operation["parameters"].as_array();
            let named = parameters.is_some_and(|all| all.iter().any(|one| one["in"] == "path"));
            assert_eq!(named, in_path, "{method} {path}");
        }
    }
    assert_eq!(names.len(), 15, "{names:?}");
}

#[test]
fn what_scripts_rely_on_is_said() {
    let rule = &document()["components"]["schemas"]["RuleSpec"];
    for field in [
        "id",
        "targets",
        "mode",
        "direction",
        "protocol",
        "ports",
        "interfaces",
        "percent",
        "established",
        "on_lift",
        "for",
        "expires",
        "comment",
    ] {
        assert!(rule["properties"][field].is_object(), "{field}: {rule}");
    }
    assert_eq!(rule["additionalProperties"], false);
    let flows = document()["paths"]["/v1/flows"]["get"]["parameters"]
        .as_array()
        .expect("flows have parameters");
    let names: Vec<&str> = flows
        .iter()
        .filter_map(|parameter| parameter["name"].as_str())
        .collect();
    assert_eq!(names, ["limit", "protocol", "remote", "rule", "sort"]);
}

#[test]
fn every_route_of_the_server_is_described() {
    let source = include_str!("../server.rs");
    let calls = source.split(".route(").skip(1);
    let routes: std::collections::BTreeSet<&str> = calls
        .filter_map(|call| {
            let first = call.split([',', ')']).next()?.trim();
            match first {
                "EXPLAIN" => Some("/v1/explain"),
                quoted => quoted.strip_prefix('"')?.strip_suffix('"'),
            }
        })
        .collect();
    let paths = document()["paths"].as_object().expect("there are paths");
    assert_eq!(routes, paths.keys().map(String::as_str).collect());
}
