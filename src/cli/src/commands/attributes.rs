//! `touch`, `chmod`, `chown`, `truncate`.

use proto::errors::errno;
use proto::v1::time_update::Time as Update;
use proto::v1::*;

use super::Session;
use super::names::owned;
use crate::args::{Owner, Time as TimeArgument};
use crate::client::Client;
use crate::error::{About, Result};
use crate::path::Remote;

async fn set(client: &mut Client, path: &Remote, request: SetAttributesRequest) -> Result<()> {
    let request = SetAttributesRequest {
        at: path.location(),
        ..request
    };
    client.names.set_attributes(request).await.about(path)?;
    Ok(())
}

pub async fn touch(
    session: &mut Session,
    client: &mut Client,
    paths: Vec<Remote>,
    no_create: bool,
    time: Option<TimeArgument>,
) -> Result<()> {
    let update = match time {
        Some(time) => Update::At(Time {
            seconds: time.seconds,
            nanoseconds: time.nanoseconds,
        }),
        None => Update::Now(true),
    };
    let update = Some(TimeUpdate { time: Some(update) });
    let request = SetAttributesRequest {
        accessed: update,
        modified: update,
        ..Default::default()
    };
    for path in paths {
        let mut result = set(client, &path, request.clone()).await;
        if result
            .as_ref()
            .is_err_and(|failure| failure.is(errno::ENOENT))
        {
            result = match no_create {
                true => Ok(()),
                false => match make(client, &path).await {
                    Ok(()) if time.is_none() => Ok(()),
                    Ok(()) => set(client, &path, request.clone()).await,
                    Err(failure) => Err(failure),
                },
            };
        }
        session.keep(result);
    }
    Ok(())
}

async fn make(client: &mut Client, path: &Remote) -> Result<()> {
    let request = MakeNodeRequest {
        at: path.location(),
        new: owned(0o644),
        kind: FileKind::Regular.into(),
        device_number: 0,
    };
    client.names.make_node(request).await.about(path)?;
    Ok(())
}

pub async fn chmod(
    session: &mut Session,
    client: &mut Client,
    mode: u32,
    paths: Vec<Remote>,
) -> Result<()> {
    for path in paths {
        let request = SetAttributesRequest {
            permissions: Some(mode),
            ..Default::default()
        };
        session.keep(set(client, &path, request).await);
    }
    Ok(())
}

pub async fn chown(
    session: &mut Session,
    client: &mut Client,
    owner: Owner,
    paths: Vec<Remote>,
    no_follow: bool,
) -> Result<()> {
    for path in paths {
        let request = SetAttributesRequest {
            uid: owner.uid,
            gid: owner.gid,
            no_follow,
            ..Default::default()
        };
        session.keep(set(client, &path, request).await);
    }
    Ok(())
}

pub async fn truncate(
    session: &mut Session,
    client: &mut Client,
    size_bytes: u64,
    paths: Vec<Remote>,
) -> Result<()> {
    for path in paths {
        let request = TruncateRequest {
            at: path.location(),
            handle: 0,
            size_bytes,
        };
        let result = client.names.truncate(request).await.about(&path);
        session.keep(result);
    }
    Ok(())
}
