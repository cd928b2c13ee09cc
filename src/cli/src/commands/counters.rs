//! `counters`: what writing and caching took.

use proto::v1::*;
use serde_json::{Map, Value, json};

use super::Session;
use super::volumes::chosen;
use crate::client::Client;
use crate::error::{About, Result};

pub async fn show(session: &mut Session, client: &mut Client, volumes: Vec<String>) -> Result<()> {
    let mut all = Vec::new();
    for volume in chosen(client, volumes).await? {
        let name = volume.trim_end_matches(":/").trim_end_matches(':');
        let request = GetCountersRequest {
            volume: name.to_owned(),
        };
        let response = client.volumes.get_counters(request).await.about(name);
        all.extend(session.keep(response).map(tonic::Response::into_inner));
    }
    if session.output.json {
        let values = all.iter().map(|counters| {
            json!({
                "volume": counters.volume,
                "writes": object(&writes(&counters.writes.unwrap_or_default())),
                "pages": object(&pages(&counters.pages.unwrap_or_default())),
            })
        });
        let values = values.collect();
        session.output.value(&Value::Array(values));
        return Ok(());
    }
    for counters in &all {
        let lists = [
            ("writes", &writes(&counters.writes.unwrap_or_default())[..]),
            ("pages", &pages(&counters.pages.unwrap_or_default())),
        ];
        for (group, list) in lists {
            for (name, value) in list {
                let line = format!("{} {group}.{name} {value}", counters.volume);
                session.output.line(&line);
            }
        }
    }
    Ok(())
}

fn object(list: &[(&str, u64)]) -> Value {
    let pairs = list
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

fn writes(counters: &WriteCounters) -> [(&'static str, u64); 17] {
    [
        ("requests", counters.requests),
        ("failed", counters.failed),
        ("cached", counters.cached),
        ("cached_bytes", counters.cached_bytes),
        ("in_place", counters.in_place),
        ("in_place_bytes", counters.in_place_bytes),
        ("inline", counters.inline),
        ("inline_bytes", counters.inline_bytes),
        ("unwritten", counters.unwritten),
        ("unwritten_bytes", counters.unwritten_bytes),
        ("hole", counters.hole),
        ("hole_bytes", counters.hole_bytes),
        ("copy_on_write", counters.copy_on_write),
        ("fallback_inline_data", counters.fallback_inline_data),
        (
            "fallback_no_append_direct",
            counters.fallback_no_append_direct,
        ),
        ("edges_serialised", counters.edges_serialised),
        ("commits_waited", counters.commits_waited),
    ]
}

fn pages(counters: &PageCounters) -> [(&'static str, u64); 8] {
    [
        ("budget", counters.budget),
        ("cached", counters.cached),
        ("dirty", counters.dirty),
        ("hits", counters.hits),
        ("misses", counters.misses),
        ("read_ahead", counters.read_ahead),
        ("written_back", counters.written_back),
        ("evicted", counters.evicted),
    ]
}
