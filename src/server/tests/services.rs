//! The services over a Unix socket, with the file system on simulated disks: what clients rely on
//! when things go wrong. (What goes right, on real devices, is in the repository's `tests/`.)
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use proto::errors::{detail_of, errno};
use proto::v1::files_client::FilesClient;
use proto::v1::io_request::Operation;
use proto::v1::namespace_client::NamespaceClient;
use proto::v1::node_client::NodeClient;
use proto::v1::volume::State;
use proto::v1::volumes_client::VolumesClient;
use proto::v1::*;
use support::{Daemon, volume};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn at(path: &str) -> Option<Location> {
    Some(Location {
        path: Bytes::copy_from_slice(path.as_bytes()),
        ..Location::default()
    })
}

async fn ready(channel: &Channel) -> ServingStatus {
    let mut health = HealthClient::new(channel.clone());
    for _ in 0..200 {
        let request = HealthCheckRequest {
            service: "ocelot.volume/data".into(),
        };
        if let Ok(answer) = health.check(request).await {
            return answer.into_inner().status();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the volume does not show up");
}

async fn create(files: &mut FilesClient<Channel>, path: &str, session: u64) -> u64 {
    let flags = OpenFlags {
        read: true,
        write: true,
        create: true,
        ..OpenFlags::default()
    };
    let request = OpenRequest {
        at: at(path),
        flags: Some(flags),
        new: None,
        session,
    };
    files.open(request).await.unwrap().into_inner().handle
}

async fn open_handles(channel: &Channel) -> u64 {
    let mut node = NodeClient::new(channel.clone());
    node.info(InfoRequest {})
        .await
        .unwrap()
        .into_inner()
        .open_handles
}

async fn until_no_handles(channel: &Channel) {
    for _ in 0..100 {
        if open_handles(channel).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("handles stay open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_reports_the_bytes_that_are_in() {
    let daemon = Daemon::start(&["data"], volume).await;
    let channel = daemon.channel().await;
    assert_eq!(ready(&channel).await, ServingStatus::Serving);
    let mut files = FilesClient::new(channel.clone());
    let handle = create(&mut files, "/big", 0).await;
    let piece = Bytes::from(vec![7; 1 << 20]);
    let pieces = (0..64).map(move |_| WriteRequest {
        handle,
        data: piece.clone(),
        ..WriteRequest::default()
    });
    let status = files.write(tokio_stream::iter(pieces)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let detail = detail_of(&status).unwrap();
    assert_eq!((detail.errno, detail.handle), (errno::ENOSPC, handle));
    assert!(detail.bytes_written > 1 << 20);
    let request = GetAttributesRequest { handle };
    let attributes = files
        .get_attributes(request)
        .await
        .unwrap()
        .into_inner()
        .attributes;
    assert_eq!(attributes.unwrap().size_bytes, detail.bytes_written);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_end_with_their_session() {
    let daemon = Daemon::start(&["data"], volume).await;
    let channel = daemon.channel().await;
    ready(&channel).await;
    let mut files = FilesClient::new(channel.clone());
    let request = OpenSessionRequest::default();
    let mut session = files.open_session(request).await.unwrap().into_inner();
    let event = session.message().await.unwrap().unwrap().event.unwrap();
    let open_session_response::Event::Started(started) = event else {
        panic!("{event:?}")
    };
    let handle = create(&mut files, "/x", started.session).await;
    assert_eq!(open_handles(&channel).await, 1);
    drop(session);
    until_no_handles(&channel).await;
    let status = files
        .sync(SyncRequest {
            handle,
            data_only: false,
        })
        .await
        .unwrap_err();
    assert_eq!(detail_of(&status).unwrap().errno, errno::EBADF);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_handles_end_and_a_waiting_session_does_not_hold_the_end_up() {
    let change = |config: &mut server::config::Config| config.limits.idle_handle_seconds = 1;
    let daemon = Daemon::configured(&["data"], volume, change).await;
    let channel = daemon.channel().await;
    ready(&channel).await;
    let mut files = FilesClient::new(channel.clone());
    create(&mut files, "/x", 0).await;
    until_no_handles(&channel).await;
    let _session = files
        .open_session(OpenSessionRequest::default())
        .await
        .unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_submission_is_completed_also_the_bad_ones() {
    let daemon = Daemon::start(&["data"], volume).await;
    let channel = daemon.channel().await;
    ready(&channel).await;
    let mut files = FilesClient::new(channel);
    let handle = create(&mut files, "/x", 0).await;
    let request = move |id: u64| {
        let data = Bytes::from(vec![id as u8; 4096]);
        let operation = match id % 10 {
            8 => None,
            9 => Some(Operation::Read(IoRead {
                handle: 12345,
                offset: 0,
                length: 1,
            })),
            _ => Some(Operation::Write(IoWrite {
                handle,
                offset: id * 4096,
                data,
                explain: false,
            })),
        };
        IoRequest { id, operation }
    };
    let requests = tokio_stream::iter((0..1000).map(request));
    let mut answers = files.io(requests).await.unwrap().into_inner();
    let mut seen = HashSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(seen.insert(answer.id), "{} twice", answer.id);
        match answer.id % 10 {
            8 => {
                let error = answer.error.unwrap();
                assert_eq!(
                    (error.errno, error.field.as_str()),
                    (errno::EINVAL, "operation")
                );
            }
            9 => assert_eq!(answer.error.unwrap().errno, errno::EBADF),
            _ => assert_eq!((answer.error, answer.bytes), (None, 4096)),
        }
    }
    assert_eq!(seen.len(), 1000);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_with_the_field_s_name() {
    let daemon = Daemon::start(&["data"], volume).await;
    let channel = daemon.channel().await;
    ready(&channel).await;
    let mut names = NamespaceClient::new(channel.clone());
    let field = |status: tonic::Status| {
        assert_eq!(status.code(), Code::InvalidArgument);
        detail_of(&status).unwrap().field
    };
    let request = StatRequest::default();
    assert_eq!(field(names.stat(request).await.unwrap_err()), "at");
    let request = StatRequest {
        at: at("/a\0"),
        no_follow: false,
    };
    assert_eq!(field(names.stat(request).await.unwrap_err()), "at.path");
    let mut files = FilesClient::new(channel);
    let request = OpenRequest {
        at: at("/x"),
        ..OpenRequest::default()
    };
    assert_eq!(field(files.open(request).await.unwrap_err()), "flags.read");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_none_is_told_and_the_other_one_is_served() {
    let make = |path: &std::path::Path| {
        if path.ends_with("data.img") {
            volume(path)
        } else {
            std::fs::write(path, [1; 65536]).unwrap()
        }
    };
    let daemon = Daemon::start(&["broken", "data"], make).await;
    let channel = daemon.channel().await;
    assert_eq!(ready(&channel).await, ServingStatus::Serving);
    let mut volumes = VolumesClient::new(channel.clone());
    let listed = volumes
        .list_volumes(ListVolumesRequest {})
        .await
        .unwrap()
        .into_inner()
        .volumes;
    let states: Vec<_> = listed
        .iter()
        .map(|one| (one.name.as_str(), one.state()))
        .collect();
    assert_eq!(
        states,
        [("broken", State::Failed), ("data", State::Mounted)]
    );
    assert!(!listed[0].reason.is_empty());
    let mut health = HealthClient::new(channel);
    let overall = health
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(overall.status(), ServingStatus::NotServing);
    daemon.stop().await;
}
