//! `export`, `exports`, `unexport`.

use proto::v1;
use proto::v1::export::State;
use proto::v1::*;
use serde_json::{Value, json};

use super::Session;
use super::volumes::table;
use crate::args;
use crate::client::Client;
use crate::error::{About, Exit, Failure, Result};
use crate::output::size_text;

pub async fn create(session: &mut Session, client: &mut Client, args: args::Export) -> Result<()> {
    let kind = match args.kind {
        args::ExportKind::Bdev => ExportKind::Bdev,
        args::ExportKind::NvmeTcp => ExportKind::NvmeTcp,
        args::ExportKind::VfioUser => ExportKind::VfioUser,
    };
    let request = CreateExportRequest {
        at: args.path.location(),
        kind: kind.into(),
        name: args.name,
        nqn: args.nqn,
        address: args.address,
        read_only: args.read_only,
        block_size: args.block_size,
    };
    let response = client.exports.create_export(request).await;
    let Some(export) = response.about(&args.path)?.into_inner().export else {
        return Err(Failure::new(
            Exit::Failed,
            format!("{}: the daemon named no export", args.path),
        ));
    };
    if session.output.json {
        session.output.value(&export_json(&export));
    } else if kind == ExportKind::Bdev {
        session.output.line(&export.name);
    } else {
        let line = format!("{}  {}  {}", export.name, export.address, export.nqn);
        session.output.line(&line);
    }
    Ok(())
}

pub async fn list(session: &mut Session, client: &mut Client) -> Result<()> {
    let response = client.exports.list_exports(ListExportsRequest {}).await;
    let exports = response.about("listing exports")?.into_inner().exports;
    if session.output.json {
        let values = exports.iter().map(export_json).collect();
        session.output.value(&Value::Array(values));
        return Ok(());
    }
    let heads = [
        "NAME", "FILE", "AS", "SIZE", "BLOCK", "READ", "WRITTEN", "REQUESTS", "ERRORS", "ADDRESS",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for export in &exports {
        let counters = export.counters.unwrap_or_default();
        let requests = counters.reads
            + counters.writes
            + counters.flushes
            + counters.unmaps
            + counters.write_zeroes;
        let access = match (export.state(), export.read_only) {
            (State::Failed, _) => " (failed)",
            (_, true) => " (read-only)",
            _ => "",
        };
        rows.push([
            export.name.clone(),
            format!("{}:{}", export.volume, export.path.escape_ascii()),
            format!("{}{access}", kind_name(export.kind())),
            size_text(export.size_bytes),
            export.block_size.to_string(),
            size_text(counters.read_bytes),
            size_text(counters.written_bytes),
            requests.to_string(),
            counters.errors.to_string(),
            export.address.clone(),
        ]);
    }
    table(session, &rows);
    for export in exports.iter().filter(|export| !export.reason.is_empty()) {
        session
            .output
            .line(&format!("{}: {}", export.name, export.reason));
    }
    Ok(())
}

pub async fn remove(session: &mut Session, client: &mut Client, names: Vec<String>) -> Result<()> {
    for name in names {
        let request = RemoveExportRequest { name: name.clone() };
        let result = client.exports.remove_export(request).await.about(&name);
        session.keep(result);
    }
    Ok(())
}

fn kind_name(kind: ExportKind) -> &'static str {
    match kind {
        ExportKind::Unspecified => "unknown",
        ExportKind::Bdev => "bdev",
        ExportKind::NvmeTcp => "nvme-tcp",
        ExportKind::VfioUser => "vfio-user",
    }
}

fn export_json(export: &v1::Export) -> Value {
    let counters = export.counters.unwrap_or_default();
    json!({
        "name": export.name,
        "volume": export.volume,
        "path": String::from_utf8_lossy(&export.path),
        "inode": export.inode,
        "as": kind_name(export.kind()),
        "nqn": export.nqn,
        "address": export.address,
        "read_only": export.read_only,
        "block_size": export.block_size,
        "size_bytes": export.size_bytes,
        "uuid": export.uuid,
        "state": match export.state() {
            State::Unspecified => "unknown",
            State::Serving => "serving",
            State::Failed => "failed",
        },
        "reason": export.reason,
        "counters": {
            "reads": counters.reads,
            "read_bytes": counters.read_bytes,
            "writes": counters.writes,
            "written_bytes": counters.written_bytes,
            "durable_writes": counters.durable_writes,
            "flushes": counters.flushes,
            "unmaps": counters.unmaps,
            "write_zeroes": counters.write_zeroes,
            "resets": counters.resets,
            "errors": counters.errors,
            "copied": counters.copied,
            "in_flight": counters.in_flight,
        },
    })
}
