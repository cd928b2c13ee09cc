//! `Check`: what a check tells on the volume's thread becomes the answers of a stream.
//!
//! The channel between is not bounded; what a check tells is: some progress a phase, and at most
//! [`fs::limits::CHECK_FINDINGS_MAX`] findings. When the client is gone, the check hears it with the
//! next thing it tells, and ends.

use std::ops::ControlFlow;

use futures_util::StreamExt;
use proto::v1::check_finding::Severity as SeverityMessage;
use proto::v1::check_response::Event;
use proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::ResponseStream;
use crate::door::{CheckEvent, CheckSummary as Summary, Finding, Severity};
use crate::failure::Failure;
use crate::volume::VolumeHandle;

/// The answers to a request for a check of a volume.
pub fn serve(name: String, volume: VolumeHandle) -> ResponseStream<CheckResponse> {
    let (answers, told) = mpsc::unbounded_channel::<Result<CheckResponse, Status>>();
    tokio::spawn(async move {
        let hear = answers.clone();
        let result = volume
            .call(move |door| async move {
                let mut hear = |event| match hear.send(Ok(response(event))) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                };
                door.check(&mut hear).await
            })
            .await
            .map_err(|failure: Failure| failure.volume(&name));
        let last = result.map(summary).map_err(Status::from);
        // Nobody may be there any more.
        let _ = answers.send(last);
    });
    UnboundedReceiverStream::new(told).boxed()
}

fn response(event: CheckEvent) -> CheckResponse {
    let event = match event {
        CheckEvent::Progress(progress) => Event::Progress(CheckProgress {
            phase: progress.phase.name().to_owned(),
            done: progress.done,
            total: progress.total,
            attempt: progress.attempt,
        }),
        CheckEvent::Finding(found) => Event::Finding(finding(found)),
    };
    CheckResponse { event: Some(event) }
}

fn finding(found: Finding) -> CheckFinding {
    let severity = match found.severity {
        Severity::Note => SeverityMessage::Note,
        Severity::Error => SeverityMessage::Error,
    };
    CheckFinding {
        severity: severity.into(),
        code: found.code.name().to_owned(),
        block: found.block.unwrap_or(0),
        inode: found.inode.unwrap_or(0),
        path: found.path.unwrap_or_default().into(),
        message: found.message,
    }
}

fn summary(summary: Summary) -> CheckResponse {
    let summary = CheckSummary {
        errors: summary.errors,
        notes: summary.notes,
        untold: summary.untold,
        inodes: summary.inodes,
        directories: summary.directories,
        orphans: summary.orphans,
        clusters_used: summary.clusters_used,
        clusters_total: summary.clusters_total,
        correctable: summary.correctable,
        attempts: summary.attempts,
    };
    CheckResponse {
        event: Some(Event::Summary(summary)),
    }
}
