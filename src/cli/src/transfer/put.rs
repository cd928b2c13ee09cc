//! `put`: local files and trees onto a volume.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, FileType, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use bytes::Bytes;
use proto::errors::errno;
use proto::v1::*;
use serde_json::{Value, json};

use super::{Copying, Jobs, current_dir_name, is_standard, local, split, upload, warn};
use crate::args::Put;
use crate::client::Client;
use crate::commands::Session;
use crate::error::{About, AboutFile, Failure, Result};
use crate::path::Remote;
use crate::progress::Progress;

/// How each file is to be written.
#[derive(Clone, Copy)]
struct How {
    append: bool,
    fsync: bool,
    exclusive: bool,
    preserve: bool,
}

pub async fn put(session: &mut Session, client: &mut Client, args: Put) -> Result<()> {
    let (sources, target) = split(args.paths)?;
    let target = super::remote(&target)?;
    let handles = client.session().await?;
    let total = match &sources[..] {
        [one] if !args.recursive && !is_standard(one) => {
            std::fs::metadata(one).ok().map(|metadata| metadata.len())
        }
        _ => None,
    };
    let copying = Copying {
        client: client.clone(),
        session: handles.id,
        mode: args.mode,
        progress: Progress::new(session.quiet, total),
        explained: args.explain.then(Default::default),
    };
    let explained = copying.explained.clone();
    let how = How {
        append: args.append,
        fsync: args.fsync,
        exclusive: args.no_clobber,
        preserve: args.preserve || args.recursive,
    };
    let attributes = client.stat_if_any(&target, true).await?;
    let into = attributes.is_some_and(|found| found.kind() == FileKind::Directory);
    if !into && (sources.len() > 1 || (target.ends_with_slash() && !args.recursive)) {
        return Err(Failure::usage(format!(
            "{target}: not a directory that is there"
        )));
    }
    let mut tree = Tree {
        jobs: Jobs::new(args.jobs, &copying.progress),
        copying,
        how,
        recursive: args.recursive,
        directories: Vec::new(),
        first_names: HashMap::new(),
        more_names: Vec::new(),
    };
    for source in sources {
        let result = tree.source(session, source, &target, into).await;
        session.keep(result);
    }
    tree.finish(session).await;
    if let Some(explained) = explained {
        let mut all =
            std::mem::take(&mut *explained.lock().unwrap_or_else(PoisonError::into_inner));
        all.sort_by_key(|(path, attempt)| (path.to_string(), attempt.offset));
        explain(session, &all);
    }
    Ok(())
}

/// How the node wrote each file.
fn explain(session: &mut Session, attempts: &[(Remote, WriteAttempt)]) {
    if session.output.json {
        let value = |(path, attempt): &(Remote, WriteAttempt)| {
            json!({
                "path": path.to_string(),
                "how": how_written(attempt),
                "offset": attempt.offset,
                "length": attempt.length,
                "bytes": attempt.bytes,
                "edges_serialised": attempt.edges_serialised,
                "exclusive": attempt.exclusive,
                "direct": attempt.direct,
                "fallback": fallback_of(attempt),
                "lock": lock_of(attempt),
                "commits_waited": attempt.commits_waited,
            })
        };
        let all = attempts.iter().map(value).collect();
        return session.output.value(&Value::Array(all));
    }
    for (path, attempt) in attempts {
        let words = [
            (attempt.direct, " direct"),
            (attempt.edges_serialised, " edges-serialised"),
            (attempt.exclusive, " exclusive"),
        ];
        let mut words: String = words
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, word)| *word)
            .collect();
        words.push_str(&format!(" lock-{}", lock_of(attempt)));
        if let Some(why) = fallback_of(attempt) {
            words.push_str(&format!(" buffered-because={why}"));
        }
        if attempt.commits_waited > 0 {
            words.push_str(&format!(" commits-waited={}", attempt.commits_waited));
        }
        let (offset, length, bytes) = (attempt.offset, attempt.length, attempt.bytes);
        let how = how_written(attempt);
        session.output.line(&format!(
            "{path} {offset}+{length}: {bytes} bytes {how}{words}"
        ));
    }
}

fn how_written(attempt: &WriteAttempt) -> &'static str {
    use write_attempt::Path;
    match attempt.path() {
        Path::Unspecified => "in a way this client does not know",
        Path::InPlace => "in-place",
        Path::Inline => "inline",
        Path::Unwritten => "unwritten",
        Path::Hole => "hole",
        Path::CopyOnWrite => "copy-on-write",
        Path::Cached => "cached",
    }
}

/// Why a direct request was not done as one.
fn fallback_of(attempt: &WriteAttempt) -> Option<&'static str> {
    use write_attempt::Fallback;
    match attempt.fallback() {
        Fallback::Unspecified => None,
        Fallback::InlineData => Some("inline-data"),
        Fallback::NoAppendDirect => Some("no-append-direct"),
    }
}

fn lock_of(attempt: &WriteAttempt) -> &'static str {
    use write_attempt::LockLevel;
    match attempt.lock() {
        LockLevel::Unspecified => "unknown",
        LockLevel::Shared => "shared",
        LockLevel::Exclusive => "exclusive",
    }
}

/// A copy of trees, under way.
struct Tree {
    copying: Copying,
    how: How,
    recursive: bool,
    jobs: Jobs,
    /// Made; their times are set last, since what is made in them changes those.
    directories: Vec<(PathBuf, Remote, Metadata)>,
    /// Files with several names: where the first one went.
    first_names: HashMap<(u64, u64), Remote>,
    /// The others: linked once the first are there.
    more_names: Vec<(Remote, Remote)>,
}

impl Tree {
    async fn source(
        &mut self,
        session: &mut Session,
        source: OsString,
        target: &Remote,
        into: bool,
    ) -> Result<()> {
        if is_standard(&source) {
            if into {
                return Err(Failure::usage("standard input needs the name of a file"));
            }
            return standard_input(&mut self.copying, self.how, target).await;
        }
        let source = PathBuf::from(source);
        let target = match current_dir_name(&source)? {
            Some(name) if into => target.join(name.as_bytes()),
            _ => target.clone(),
        };
        // What is named on the command line is followed if it is a link, what is found is not.
        let metadata = if self.recursive {
            std::fs::symlink_metadata(&source)
        } else {
            std::fs::metadata(&source)
        }
        .about_file(&source)?;
        if metadata.is_dir() && !self.recursive {
            return Err(Failure::usage(format!(
                "{}: is a directory (-r)",
                source.display()
            )));
        }
        if !self.recursive && !metadata.is_file() {
            // A pipe, a device: its bytes are meant.
            let file = File::open(&source).about_file(&source)?;
            return bytes(&mut self.copying, self.how, Box::new(file), source, &target).await;
        }
        let mut stack = vec![(source, target, metadata)];
        while let Some((path, remote, metadata)) = stack.pop() {
            let result = self.one(session, path, remote, metadata, &mut stack).await;
            if let Err(failure) = result {
                self.copying
                    .progress
                    .clone()
                    .suspend(|| session.fail(failure));
            }
        }
        Ok(())
    }

    async fn one(
        &mut self,
        session: &mut Session,
        path: PathBuf,
        remote: Remote,
        metadata: Metadata,
        stack: &mut Vec<(PathBuf, Remote, Metadata)>,
    ) -> Result<()> {
        if metadata.is_dir() {
            return self.directory(path, remote, metadata, stack).await;
        }
        if self.recursive && metadata.nlink() > 1 {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = self.first_names.get(&identity) {
                self.more_names.push((first.clone(), remote));
                return Ok(());
            }
            self.first_names.insert(identity, remote.clone());
        }
        let (copying, how) = (self.copying.clone(), self.how);
        let kind = metadata.file_type();
        self.jobs
            .start(session, async move {
                if kind.is_file() {
                    regular(copying, how, path, metadata, remote).await
                } else {
                    special(copying, path, metadata, kind, remote).await
                }
            })
            .await;
        Ok(())
    }

    /// Makes a directory and puts what is in it on the stack.
    async fn directory(
        &mut self,
        path: PathBuf,
        remote: Remote,
        metadata: Metadata,
        stack: &mut Vec<(PathBuf, Remote, Metadata)>,
    ) -> Result<()> {
        self.copying.progress.show(&remote.to_string());
        let client = &mut self.copying.client;
        let made = crate::commands::make_directory(client, &remote, 0o700).await;
        match made {
            Err(failure) if failure.is(errno::EEXIST) => {
                if client.stat(&remote, true).await?.kind() != FileKind::Directory {
                    return Err(failure);
                }
            }
            other => other?,
        }
        let entries = std::fs::read_dir(&path).about_file(&path)?;
        self.directories
            .push((path.clone(), remote.clone(), metadata));
        for entry in entries {
            let entry = entry.about_file(&path)?;
            let path = entry.path();
            let metadata = entry.metadata().about_file(&path)?;
            stack.push((path, remote.join(entry.file_name().as_bytes()), metadata));
        }
        Ok(())
    }

    async fn finish(mut self, session: &mut Session) {
        self.jobs.finish(session).await;
        let mut client = self.copying.client.clone();
        for (first, name) in std::mem::take(&mut self.more_names) {
            let result = link(&mut client, &first, &name).await;
            session.keep(result);
        }
        // Deepest first: setting one's times is the last change below those above.
        while let Some((path, remote, metadata)) = self.directories.pop() {
            let result = preserve(&mut self.copying, &path, &remote, &metadata).await;
            session.keep(result);
        }
        self.copying.progress.finish();
    }
}

async fn link(client: &mut Client, first: &Remote, name: &Remote) -> Result<()> {
    let request = LinkRequest {
        from: first.location(),
        to: name.location(),
        follow: false,
    };
    match client.names.link(request.clone()).await.about(name) {
        Err(failure) if failure.is(errno::EEXIST) => {
            client
                .names
                .unlink(UnlinkRequest {
                    at: name.location(),
                })
                .await
                .about(name)?;
            client.names.link(request).await.about(name).map(drop)
        }
        other => other.map(drop),
    }
}

/// Opens (and makes) the remote file.
async fn open(copying: &mut Copying, how: How, remote: &Remote, permissions: u32) -> Result<u64> {
    let flags = OpenFlags {
        write: true,
        create: true,
        exclusive: how.exclusive,
        append: how.append,
        truncate: !how.append && !how.exclusive,
        ..copying.flags()
    };
    let request = OpenRequest {
        at: remote.location(),
        flags: Some(flags),
        new: crate::commands::owned(permissions),
        session: copying.session,
    };
    Ok(copying
        .client
        .files
        .open(request)
        .await
        .about(remote)?
        .into_inner()
        .handle)
}

async fn close(copying: &mut Copying, how: How, handle: u64, remote: &Remote) -> Result<()> {
    if how.fsync {
        let request = SyncRequest {
            handle,
            data_only: false,
        };
        copying.client.files.sync(request).await.about(remote)?;
    }
    copying.close(handle, remote).await
}

async fn standard_input(copying: &mut Copying, how: How, remote: &Remote) -> Result<()> {
    let path = PathBuf::from("standard input");
    bytes(copying, how, Box::new(std::io::stdin()), path, remote).await
}

/// What can be read, into a file.
async fn bytes(
    copying: &mut Copying,
    how: How,
    source: Box<dyn std::io::Read + Send>,
    path: PathBuf,
    remote: &Remote,
) -> Result<()> {
    let handle = open(copying, how, remote, 0o644).await?;
    upload::stream(copying, handle, source, path, remote).await?;
    close(copying, how, handle, remote).await
}

async fn regular(
    mut copying: Copying,
    how: How,
    path: PathBuf,
    metadata: Metadata,
    remote: Remote,
) -> Result<()> {
    let file = File::open(&path).about_file(&path)?;
    let handle = open(&mut copying, how, &remote, metadata.mode() & 0o777).await?;
    if how.append {
        upload::stream(&mut copying, handle, Box::new(file), path.clone(), &remote).await?;
    } else if metadata.len() > 0 {
        let local = (file, path.clone());
        upload::file(&mut copying, handle, local, metadata.len(), &remote).await?;
    }
    if how.preserve {
        set_xattrs(&mut copying, &path, &remote).await?;
        let request = SetAttributesRequest {
            handle,
            ..local::preserving(&metadata)
        };
        copying
            .client
            .names
            .set_attributes(request)
            .await
            .about(&remote)?;
    }
    close(&mut copying, how, handle, &remote).await
}

/// A symbolic link, device node, FIFO or socket.
async fn special(
    mut copying: Copying,
    path: PathBuf,
    metadata: Metadata,
    kind: FileType,
    remote: Remote,
) -> Result<()> {
    let made = make_special(&mut copying, &path, &metadata, kind, &remote).await;
    match made {
        Err(failure) if failure.is(errno::EEXIST) => {
            let request = UnlinkRequest {
                at: remote.location(),
            };
            copying.client.names.unlink(request).await.about(&remote)?;
            make_special(&mut copying, &path, &metadata, kind, &remote).await?;
        }
        other => other?,
    }
    preserve(&mut copying, &path, &remote, &metadata).await
}

async fn make_special(
    copying: &mut Copying,
    path: &Path,
    metadata: &Metadata,
    kind: FileType,
    remote: &Remote,
) -> Result<()> {
    let new = crate::commands::owned(metadata.mode() & 0o777);
    let names = &mut copying.client.names;
    if kind.is_symlink() {
        let target = std::fs::read_link(path).about_file(path)?;
        let target = Bytes::from(target.into_os_string().into_vec());
        let request = MakeSymlinkRequest {
            at: remote.location(),
            target,
            new,
        };
        names.make_symlink(request).await.about(remote)?;
        return Ok(());
    }
    let (kind, device_number) = if kind.is_char_device() {
        (FileKind::CharacterDevice, metadata.rdev())
    } else if kind.is_block_device() {
        (FileKind::BlockDevice, metadata.rdev())
    } else if kind.is_fifo() {
        (FileKind::Fifo, 0)
    } else {
        (FileKind::Socket, 0)
    };
    let request = MakeNodeRequest {
        at: remote.location(),
        new,
        kind: kind.into(),
        device_number,
    };
    names.make_node(request).await.about(remote)?;
    Ok(())
}

/// Gives a remote directory or link the local one's attributes.
async fn preserve(
    copying: &mut Copying,
    path: &Path,
    remote: &Remote,
    metadata: &Metadata,
) -> Result<()> {
    set_xattrs(copying, path, remote).await?;
    let mut request = SetAttributesRequest {
        at: remote.location(),
        no_follow: true,
        ..local::preserving(metadata)
    };
    if metadata.is_symlink() {
        request.permissions = None;
    }
    copying
        .client
        .names
        .set_attributes(request)
        .await
        .about(remote)?;
    Ok(())
}

async fn set_xattrs(copying: &mut Copying, path: &Path, remote: &Remote) -> Result<()> {
    for (name, value) in local::xattrs(path)? {
        let about = format!("{remote}: {}", String::from_utf8_lossy(&name));
        let request = SetXattrRequest {
            at: remote.location(),
            no_follow: true,
            name,
            value,
            ..SetXattrRequest::default()
        };
        match copying.client.names.set_xattr(request).await.about(about) {
            Err(failure) if failure.is(errno::EOPNOTSUPP) || failure.is(errno::EPERM) => {
                warn(
                    &copying.progress,
                    &format!("not copied: {}", failure.message),
                );
            }
            other => drop(other?),
        }
    }
    Ok(())
}
