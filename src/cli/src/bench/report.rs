//! What a bench found, for people and in JSON.

use serde_json::{Map, Value, json};

use super::Plan;
use super::job::{Kind, Tally};
use crate::args::{self, Work};
use crate::commands::Session;

/// Percentiles, and what they are called in JSON.
const PERCENTILES: [(f64, &str); 6] = [
    (50.0, "p50"),
    (90.0, "p90"),
    (95.0, "p95"),
    (99.0, "p99"),
    (99.9, "p99_9"),
    (99.99, "p99_99"),
];

pub fn tell(session: &mut Session, args: &args::Bench, plan: Plan, tally: &Tally) {
    let seconds = tally.elapsed.as_secs_f64();
    let kinds = [("read", &tally.reads), ("write", &tally.writes)];
    let kinds = kinds
        .into_iter()
        .filter(|(_, kind)| !kind.latency.is_empty());
    if session.output.json {
        let mut object = what(args, plan);
        object.insert("seconds".into(), json!(seconds));
        for (name, kind) in kinds {
            object.insert(name.into(), figures(kind, seconds));
        }
        if args.verify {
            let verified = json!(tally.verified_blocks);
            object.insert("verified_blocks".into(), verified);
        }
        return session.output.value(&Value::Object(object));
    }
    for (name, kind) in kinds {
        let count = kind.latency.len();
        let iops = count as f64 / seconds;
        let mib = kind.bytes as f64 / seconds / f64::from(1 << 20);
        let output = &mut session.output;
        output.line(&format!(
            "{name:>5}: {count} requests in {seconds:.2} s, {iops:.0} a second, {mib:.1} MiB/s"
        ));
        let mut line = format!(
            "       latency in us: mean {:.1}",
            kind.latency.mean() / 1e3
        );
        for (percentile, _) in PERCENTILES {
            let ns = kind.latency.value_at_percentile(percentile);
            line.push_str(&format!(", {percentile}% {:.1}", ns as f64 / 1e3));
        }
        line.push_str(&format!(", most {:.1}", kind.latency.max() as f64 / 1e3));
        output.line(&line);
    }
    if args.verify {
        let verified = tally.verified_blocks;
        session
            .output
            .line(&format!("{verified} blocks held what was written"));
    }
}

fn what(args: &args::Bench, plan: Plan) -> Map<String, Value> {
    let work = match args.work {
        Work::Read => "read",
        Work::Write => "write",
        Work::Mixed => "mixed",
    };
    let mode = match (args.mode.direct, args.mode.buffered) {
        (true, _) => "direct",
        (_, true) => "buffered",
        _ => "default",
    };
    let value = json!({
        "path": args.path.to_string(),
        "work": work,
        "order": if args.sequential { "sequential" } else { "random" },
        "mode": mode,
        "block_bytes": plan.block_bytes,
        "depth": args.depth,
        "jobs": args.jobs,
        "size_bytes": plan.block_bytes * plan.blocks * u64::from(args.jobs),
    });
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn figures(kind: &Kind, seconds: f64) -> Value {
    let us = |ns: u64| ns as f64 / 1e3;
    let mut latency = Map::new();
    latency.insert("mean".into(), json!(kind.latency.mean() / 1e3));
    latency.insert("min".into(), json!(us(kind.latency.min())));
    for (percentile, name) in PERCENTILES {
        let ns = kind.latency.value_at_percentile(percentile);
        latency.insert(name.into(), json!(us(ns)));
    }
    latency.insert("max".into(), json!(us(kind.latency.max())));
    json!({
        "requests": kind.latency.len(),
        "bytes": kind.bytes,
        "iops": kind.latency.len() as f64 / seconds,
        "bytes_per_second": kind.bytes as f64 / seconds,
        "latency_us": latency,
    })
}
