//! Making, removing and moving names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use proto::errors::errno;
use proto::v1::rename_request::Mode;
use proto::v1::*;

use super::Session;
use crate::client::Client;
use crate::error::{About, Failure, Result};
use crate::path::Remote;

/// Names removed at once.
const REMOVES_IN_FLIGHT: usize = 32;

/// Who new inodes belong to: whoever runs the client.
pub fn owned(permissions: u32) -> Option<NewInode> {
    Some(NewInode {
        permissions: Some(permissions),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    })
}

pub async fn mkdir(
    session: &mut Session,
    client: &mut Client,
    paths: Vec<Remote>,
    parents: bool,
    mode: u32,
) -> Result<()> {
    for path in paths {
        let result = if parents {
            make_with_parents(client, &path, mode).await
        } else {
            make(client, &path, mode).await
        };
        session.keep(result);
    }
    Ok(())
}

pub async fn make(client: &mut Client, path: &Remote, mode: u32) -> Result<()> {
    let request = MakeDirectoryRequest {
        at: path.location(),
        new: owned(mode),
    };
    client.names.make_directory(request).await.about(path)?;
    Ok(())
}

async fn make_with_parents(client: &mut Client, path: &Remote, mode: u32) -> Result<()> {
    let prefixes = path.prefixes();
    let count = prefixes.len();
    for (index, prefix) in prefixes.iter().enumerate() {
        let mode = if index + 1 == count { mode } else { 0o755 };
        match make(client, prefix, mode).await {
            Ok(()) => {}
            Err(failure) if failure.is(errno::EEXIST) => {
                let attributes = client.stat(prefix, true).await?;
                if attributes.kind() != FileKind::Directory {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

pub async fn rmdir(session: &mut Session, client: &mut Client, paths: Vec<Remote>) -> Result<()> {
    for path in paths {
        session.keep(remove_directory(client, &path).await);
    }
    Ok(())
}

async fn remove_directory(client: &mut Client, path: &Remote) -> Result<()> {
    let request = RemoveDirectoryRequest {
        at: path.location(),
    };
    client.names.remove_directory(request).await.about(path)?;
    Ok(())
}

async fn unlink(client: &mut Client, path: &Remote) -> Result<()> {
    client
        .names
        .unlink(UnlinkRequest {
            at: path.location(),
        })
        .await
        .about(path)?;
    Ok(())
}

pub async fn rm(
    session: &mut Session,
    client: &mut Client,
    paths: Vec<Remote>,
    recursive: bool,
    force: bool,
) -> Result<()> {
    for path in paths {
        if recursive && path.name().is_none() {
            session.fail(Failure::usage(format!("{path}: the root is not removed")));
            continue;
        }
        let result = match client.stat(&path, false).await {
            Ok(attributes) if recursive && attributes.kind() == FileKind::Directory => {
                remove_tree(session, client, path).await
            }
            Ok(_) => unlink(client, &path).await,
            Err(failure) => Err(failure),
        };
        match result {
            Err(failure) if force && failure.is(errno::ENOENT) => {}
            other => drop(session.keep(other)),
        }
    }
    Ok(())
}

/// Empties and removes a directory, bottom up. What cannot be removed is told, and the directories
/// above it stay.
async fn remove_tree(session: &mut Session, client: &mut Client, top: Remote) -> Result<()> {
    enum Step {
        Empty(Remote),
        Remove(Remote),
    }
    let mut steps = vec![Step::Empty(top)];
    while let Some(step) = steps.pop() {
        match step {
            Step::Remove(directory) => {
                let result = remove_directory(client, &directory).await;
                session.keep(result);
            }
            Step::Empty(directory) => {
                let list = client.list(&directory).await;
                let Some(entries) = session.keep(list) else {
                    continue;
                };
                steps.push(Step::Remove(directory.clone()));
                let mut files = Vec::new();
                for entry in entries {
                    let path = directory.join(&entry.name);
                    if entry.kind() == FileKind::Directory {
                        steps.push(Step::Empty(path));
                    } else {
                        files.push(path);
                    }
                }
                let removed = stream::iter(files)
                    .map(|path| {
                        let mut client = client.clone();
                        async move { unlink(&mut client, &path).await }
                    })
                    .buffer_unordered(REMOVES_IN_FLIGHT);
                for result in removed.collect::<Vec<_>>().await {
                    session.keep(result);
                }
            }
        }
    }
    Ok(())
}

pub async fn mv(
    client: &mut Client,
    from: Remote,
    to: Remote,
    no_clobber: bool,
    exchange: bool,
) -> Result<()> {
    let mut target = to.clone();
    if !exchange
        && let Some(attributes) = client.stat_if_any(&to, true).await?
        && attributes.kind() == FileKind::Directory
    {
        let name = from
            .name()
            .ok_or_else(|| Failure::usage(format!("{from}: the root is not moved")))?;
        target = to.join(name);
    }
    let mode = match (no_clobber, exchange) {
        (true, _) => Mode::NoReplace,
        (_, true) => Mode::Exchange,
        _ => Mode::Unspecified,
    };
    let request = RenameRequest {
        from: from.location(),
        to: target.location(),
        mode: mode.into(),
    };
    client
        .names
        .rename(request)
        .await
        .about(format_args!("{from} to {target}"))?;
    Ok(())
}

pub async fn ln(
    client: &mut Client,
    symbolic: bool,
    target: &OsStr,
    mut link: Remote,
) -> Result<()> {
    let from = match symbolic {
        true => None,
        false => {
            let error = |error| Failure::usage(format!("{error}"));
            Some(Remote::parse(target).map_err(error)?)
        }
    };
    if let Some(attributes) = client.stat_if_any(&link, true).await?
        && attributes.kind() == FileKind::Directory
    {
        let bytes = target.as_bytes();
        let name = bytes
            .rsplit(|&byte| byte == b'/')
            .find(|part| !part.is_empty());
        link = link.join(name.unwrap_or(bytes));
    }
    match from {
        Some(from) => {
            let request = LinkRequest {
                from: from.location(),
                to: link.location(),
                follow: false,
            };
            client
                .names
                .link(request)
                .await
                .about(format_args!("{from} as {link}"))?;
        }
        None => {
            let target = Bytes::copy_from_slice(target.as_bytes());
            let request = MakeSymlinkRequest {
                at: link.location(),
                target,
                new: owned(0o777),
            };
            client.names.make_symlink(request).await.about(&link)?;
        }
    }
    Ok(())
}
