//! The description at `/openapi.json`: what the routes say of themselves, and what is the same for all of them.
//!
//! Owns that completion: every refusal is a problem document, every answer says what it is, an upload is bytes or a form, and a
//! function takes every method. The routes' own parameters and answers stand with the routes.

use http::StatusCode;
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

use super::once::KEY;

/// Schema of a refusal.
const PROBLEM: &str = "#/components/schemas/Problem";
/// Where functions are invoked: described once, for `post`.
const INVOKE: [&str; 2] = ["/v1/functions/{name}/invoke", "/v1/functions/{name}/invoke/{path}"];
/// Where they are deployed.
const FUNCTION: &str = "/v1/functions/{name}";

/// Where entries are. One function answers GET and, for axum, HEAD; it is described once.
const ENTRY: &str = "/v1/buckets/{name}/kv/{key}";

/// The whole description.
pub(super) fn complete(described: &OpenApi) -> Value {
    let mut description = json!(described);
    if let Some(paths) = description["paths"].as_object_mut() {
        for path in INVOKE {
            every_method(&mut paths[path]);
        }
        paths[FUNCTION]["put"]["requestBody"] = upload();
        paths[ENTRY]["head"] = head_of(&paths[ENTRY]["get"]);
        let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut);
        for operation in operations {
            let takes_key = takes_key(operation);
            let Some(responses) = operation["responses"].as_object_mut() else { continue };
            if takes_key {
                complete_once(responses);
            }
            complete_responses(responses);
        }
    }
    let scheme = |of: &str| json!({ "type": "http", "scheme": "bearer", "description": of });
    description["components"]["securitySchemes"] = json!({
        "token": scheme("A token, for its tenant; the role is the scope that it needs. An admin of the tenant `default` may name another tenant in the header `hob-tenant`."),
        "operator": scheme("A token of the tenant `default`."),
    });
    description
}

/// What `post` says holds for the other methods too.
fn every_method(item: &mut Value) {
    let described = item["post"].clone();
    for method in ["get", "head", "options", "post", "put", "patch", "delete"] {
        let mut operation = described.clone();
        operation["operationId"] = format!("{}_{method}", described["operationId"].as_str().unwrap_or_default()).into();
        if ["post", "put", "patch"].contains(&method) {
            operation["requestBody"] = json!({ "description": "what the function gets", "content": { "*/*": {} } });
        }
        item[method] = operation;
    }
}

/// HEAD of what `get` describes: the same answers, those that succeed without their bodies.
fn head_of(get: &Value) -> Value {
    let mut head = get.clone();
    head["operationId"] = get["operationId"].as_str().unwrap_or_default().replace("_get", "_head").into();
    for (status, response) in head["responses"].as_object_mut().into_iter().flatten() {
        if let Some(response) = response.as_object_mut().filter(|_| status.starts_with('2')) {
            response.remove("content");
        }
    }
    head
}

/// A module as it is, or in a form with its manifest.
fn upload() -> Value {
    let form = json!({
        "type": "object",
        "required": ["wasm"],
        "properties": {
            "manifest": { "type": "string", "description": "the text of hob.toml" },
            "wasm": { "description": "the module or component", "contentMediaType": "application/wasm" },
        },
    });
    let content = json!({
        "application/wasm": {},
        "application/octet-stream": {},
        "multipart/form-data": { "schema": form },
    });
    json!({ "required": true, "content": content })
}

/// Whether an operation says that it takes an `Idempotency-Key`.
pub(super) fn takes_key(operation: &Value) -> bool {
    let mut parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters.any(|parameter| parameter["in"] == "header" && parameter["name"] == KEY.as_str())
}

/// What is the same for all operations that take an `Idempotency-Key`.
fn complete_once(responses: &mut Map<String, Value>) {
    for (status, what) in [
        ("409", "the first request with this idempotency-key is still under way"),
        ("422", "this idempotency-key was sent before, with another request"),
        ("429", "a quota is used up"),
    ] {
        let response = responses.entry(status).or_insert_with(|| json!({}));
        let described = response["description"].as_str().filter(|text| !text.is_empty());
        response["description"] = described.map_or_else(|| what.to_owned(), |text| format!("{text}; or {what}")).into();
        response["content"] = problem();
    }
    for (_, response) in responses.iter_mut().filter(|(status, _)| status.starts_with('2')) {
        response["headers"]["hob-replayed"] =
            json!({ "description": "`1`: the answer to the same request before", "schema": { "type": "integer" } });
    }
}

fn problem() -> Value {
    json!({ "application/problem+json": { "schema": { "$ref": PROBLEM } } })
}

fn complete_responses(responses: &mut Map<String, Value>) {
    for (status, response) in responses.iter_mut() {
        if response["content"]["application/json"]["schema"]["$ref"] == PROBLEM {
            response["content"] = problem();
        }
        if response["description"].as_str().is_none_or(str::is_empty) {
            let reason = StatusCode::from_bytes(status.as_bytes()).ok().and_then(|status| status.canonical_reason());
            response["description"] = reason.unwrap_or("an answer").into();
        }
    }
    for (status, what) in
        [("401", "no token that the node knows"), ("403", "the token does not allow it"), ("429", "too many unknown tokens")]
    {
        responses.entry(status).or_insert_with(|| json!({ "description": what, "content": problem() }));
    }
    responses.insert("default".into(), json!({ "description": "any other refusal: `code` says which", "content": problem() }));
}
