//! `check`: what is wrong with a volume, a line a finding, and a status that says whether anything is.

use proto::v1::check_finding::Severity;
use proto::v1::check_response::Event;
use proto::v1::{CheckFinding, CheckProgress, CheckRequest, CheckSummary};
use serde_json::{Map, Value, json};

use super::Session;
use crate::client::Client;
use crate::error::{About, Exit, Failure, Result};
use crate::output::put_bytes;
use crate::progress::Progress;

pub async fn check(session: &mut Session, client: &mut Client, volume: String) -> Result<()> {
    let name = volume
        .trim_end_matches(":/")
        .trim_end_matches(':')
        .to_owned();
    let what = if name.is_empty() { "the volume" } else { &name };
    let request = CheckRequest {
        volume: name.clone(),
    };
    let response = client.volumes.check(request).await.about(what)?;
    let mut events = response.into_inner();
    let progress = Progress::new(session.quiet, None);
    let mut findings = Vec::new();
    let mut end = None;
    while let Some(response) = events.message().await.about(what)? {
        match response.event {
            Some(Event::Progress(now)) => progress.show(&text_of(&now)),
            Some(Event::Finding(finding)) if session.output.json => {
                findings.push(finding_json(&finding));
            }
            Some(Event::Finding(finding)) => {
                progress.suspend(|| session.output.byte_line(&finding_line(&finding)));
            }
            Some(Event::Summary(summary)) => end = Some(summary),
            None => {}
        }
    }
    progress.finish();
    let summary = end.ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            format!("{what}: the check ended without its summary"),
        )
    })?;
    if session.output.json {
        session.output.value(&json!({
            "volume": name,
            "clean": summary.errors == 0,
            "findings": findings,
            "summary": summary_json(&summary),
        }));
    } else {
        session.output.line(&summary_line(&summary));
    }
    if summary.errors == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Damaged,
        format!("{what}: {} errors", summary.errors),
    ))
}

fn text_of(progress: &CheckProgress) -> String {
    let again = match progress.attempt {
        0 | 1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let CheckProgress {
        phase, done, total, ..
    } = progress;
    format!("{phase} {done}/{total}{again}")
}

fn severity_name(finding: &CheckFinding) -> &'static str {
    match finding.severity() {
        Severity::Note => "note",
        Severity::Error | Severity::Unspecified => "error",
    }
}

/// `error CODE inode 7 (/path) block 9: message`
fn finding_line(finding: &CheckFinding) -> Vec<u8> {
    let mut line = format!("{} {}", severity_name(finding), finding.code).into_bytes();
    if finding.inode != 0 {
        line.extend_from_slice(format!(" inode {}", finding.inode).as_bytes());
    }
    if !finding.path.is_empty() {
        line.extend_from_slice(b" (");
        line.extend_from_slice(&finding.path);
        line.push(b')');
    }
    if finding.block != 0 && finding.block != finding.inode {
        line.extend_from_slice(format!(" block {}", finding.block).as_bytes());
    }
    line.extend_from_slice(format!(": {}", finding.message).as_bytes());
    line
}

fn finding_json(finding: &CheckFinding) -> Value {
    let mut object = Map::new();
    object.insert("severity".into(), severity_name(finding).into());
    object.insert("code".into(), finding.code.clone().into());
    let number = |value: u64| match value {
        0 => Value::Null,
        value => value.into(),
    };
    object.insert("block".into(), number(finding.block));
    object.insert("inode".into(), number(finding.inode));
    if finding.path.is_empty() {
        object.insert("path".into(), Value::Null);
    } else {
        put_bytes(&mut object, "path", &finding.path);
    }
    object.insert("message".into(), finding.message.clone().into());
    Value::Object(object)
}

fn summary_json(summary: &CheckSummary) -> Value {
    json!({
        "errors": summary.errors,
        "notes": summary.notes,
        "untold": summary.untold,
        "inodes": summary.inodes,
        "directories": summary.directories,
        "orphans": summary.orphans,
        "clusters_used": summary.clusters_used,
        "clusters_total": summary.clusters_total,
        "correctable": summary.correctable,
        "attempts": summary.attempts,
    })
}

fn summary_line(summary: &CheckSummary) -> String {
    let verdict = match summary.errors {
        0 => "clean".to_owned(),
        1 => "1 error".to_owned(),
        errors => format!("{errors} errors"),
    };
    let mut line = format!(
        "{verdict}: {} inodes, {} directories, {} of {} clusters used, {} orphans, {} notes",
        summary.inodes,
        summary.directories,
        summary.clusters_used,
        summary.clusters_total,
        summary.orphans,
        summary.notes
    );
    if summary.untold > 0 {
        line.push_str(&format!(" ({} findings not shown)", summary.untold));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_an_object() {
        let finding = CheckFinding {
            severity: Severity::Error.into(),
            code: "INODE_COUNT".into(),
            block: 9,
            inode: 9,
            path: b"/a\xFF".to_vec().into(),
            message: "2 links, 1 found".into(),
        };
        assert_eq!(
            finding_line(&finding),
            b"error INODE_COUNT inode 9 (/a\xFF): 2 links, 1 found"
        );
        let value = finding_json(&finding);
        assert_eq!(value["path_hex"], "2f61ff");
        assert_eq!((&value["inode"], &value["block"]), (&json!(9), &json!(9)));
        let finding = CheckFinding {
            block: 5,
            inode: 0,
            path: Vec::new().into(),
            severity: Severity::Note.into(),
            ..finding
        };
        assert_eq!(
            finding_line(&finding),
            b"note INODE_COUNT block 5: 2 links, 1 found"
        );
        assert_eq!(finding_json(&finding)["path"], Value::Null);
    }
}
