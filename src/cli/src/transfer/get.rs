//! `get`: files and trees of a volume into local ones.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use proto::v1::*;
use rustix::fs::{CWD, Mode};

use super::{Copying, Jobs, blocking, download, is_standard, local, split};
use crate::args::Get;
use crate::client::{Client, no_attributes};
use crate::commands::Session;
use crate::error::{About, AboutFile, Exit, Failure, Result};
use crate::path::Remote;
use crate::progress::Progress;

pub async fn get(session: &mut Session, client: &mut Client, args: Get) -> Result<()> {
    let (sources, target) = split(args.paths)?;
    let sources = sources
        .iter()
        .map(|path| super::remote(path))
        .collect::<Result<Vec<_>>>()?;
    let handles = client.session().await?;
    let total = match &sources[..] {
        [one] if !args.recursive => Some(client.stat(one, true).await?.size_bytes),
        _ => None,
    };
    let mut copying = Copying {
        client: client.clone(),
        session: handles.id,
        mode: args.mode,
        progress: Progress::new(session.quiet, total),
        explained: None,
    };
    if is_standard(&target) {
        for path in sources {
            let result = download::to_output(&mut copying, &path, &mut session.output).await;
            session.keep(result);
        }
        copying.progress.finish();
        return Ok(());
    }
    let target = PathBuf::from(target);
    let into = target.is_dir();
    if !into && sources.len() > 1 {
        let message = format!("{}: not a directory that is there", target.display());
        return Err(Failure::usage(message));
    }
    let mut tree = Tree {
        jobs: Jobs::new(args.jobs, &copying.progress),
        copying,
        preserve: args.preserve || args.recursive,
        recursive: args.recursive,
        directories: Vec::new(),
        first_names: HashMap::new(),
        more_names: Vec::new(),
    };
    for source in sources {
        let path = match source.name() {
            Some(name) if into => target.join(OsStr::from_bytes(name)),
            _ => target.clone(),
        };
        let result = tree.source(session, source, path).await;
        session.keep(result);
    }
    tree.finish(session).await;
    Ok(())
}

/// A copy of trees, under way.
struct Tree {
    copying: Copying,
    preserve: bool,
    recursive: bool,
    jobs: Jobs,
    /// Made; they get their attributes last.
    directories: Vec<(Remote, PathBuf, Attributes)>,
    /// Files with several names: where the first one went.
    first_names: HashMap<u64, PathBuf>,
    more_names: Vec<(PathBuf, PathBuf)>,
}

impl Tree {
    async fn source(&mut self, session: &mut Session, source: Remote, path: PathBuf) -> Result<()> {
        let attributes = self.copying.client.stat(&source, !self.recursive).await?;
        if attributes.kind() == FileKind::Directory && !self.recursive {
            return Err(Failure::usage(format!("{source}: is a directory (-r)")));
        }
        let mut stack = vec![(source, path, attributes)];
        while let Some((remote, path, attributes)) = stack.pop() {
            let result = self
                .one(session, remote, path, attributes, &mut stack)
                .await;
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
        remote: Remote,
        path: PathBuf,
        attributes: Attributes,
        stack: &mut Vec<(Remote, PathBuf, Attributes)>,
    ) -> Result<()> {
        if attributes.kind() == FileKind::Directory {
            return self
                .directory(session, remote, path, attributes, stack)
                .await;
        }
        if self.recursive && attributes.links > 1 {
            if let Some(first) = self.first_names.get(&attributes.inode) {
                self.more_names.push((first.clone(), path));
                return Ok(());
            }
            self.first_names.insert(attributes.inode, path.clone());
        }
        let (copying, preserve) = (self.copying.clone(), self.preserve);
        self.jobs
            .start(session, async move {
                match attributes.kind() {
                    FileKind::Regular => regular(copying, remote, path, attributes, preserve).await,
                    _ => special(copying, remote, path, attributes).await,
                }
            })
            .await;
        Ok(())
    }

    async fn directory(
        &mut self,
        session: &mut Session,
        remote: Remote,
        path: PathBuf,
        attributes: Attributes,
        stack: &mut Vec<(Remote, PathBuf, Attributes)>,
    ) -> Result<()> {
        self.copying.progress.show(&remote.to_string());
        if !path.is_dir() {
            DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .about_file(&path)?;
        }
        let entries = self.copying.client.list(&remote).await?;
        self.directories
            .push((remote.clone(), path.clone(), attributes));
        for entry in entries {
            let below = remote.join(&entry.name);
            let Some(name) = local::entry_name(&entry.name) else {
                let message = format!("{below}: the name is not fit for a local file");
                session.fail(Failure::new(Exit::Failed, message));
                continue;
            };
            match entry.attributes {
                Some(attributes) => stack.push((below, path.join(name), attributes)),
                None => session.fail(no_attributes(&below)),
            }
        }
        Ok(())
    }

    async fn finish(mut self, session: &mut Session) {
        self.jobs.finish(session).await;
        for (first, name) in std::mem::take(&mut self.more_names) {
            let result = replace(&name, || std::fs::hard_link(&first, &name));
            session.keep(result);
        }
        while let Some((remote, path, attributes)) = self.directories.pop() {
            let result = finish(&mut self.copying, &remote, &path, &attributes).await;
            session.keep(result);
        }
        self.copying.progress.finish();
    }
}

/// Runs `make`; once more without what is in the way.
fn replace(path: &Path, make: impl Fn() -> std::io::Result<()>) -> Result<()> {
    match make() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path).about_file(path)?;
            make().about_file(path)
        }
        other => other.about_file(path),
    }
}

async fn regular(
    mut copying: Copying,
    remote: Remote,
    path: PathBuf,
    attributes: Attributes,
    preserve: bool,
) -> Result<()> {
    let handle = copying.open_to_read(&remote).await?;
    let file = create(&path, attributes.permissions)?;
    download::to_file(&mut copying, handle, &remote, &file, &path).await?;
    copying.close(handle, &remote).await?;
    if preserve {
        finish(&mut copying, &remote, &path, &attributes).await?;
    }
    Ok(())
}

fn create(path: &Path, permissions: u32) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(permissions & 0o777);
    options.open(path).about_file(path)
}

async fn special(
    mut copying: Copying,
    remote: Remote,
    path: PathBuf,
    attributes: Attributes,
) -> Result<()> {
    if attributes.kind() == FileKind::Symlink {
        let request = ReadSymlinkRequest {
            at: remote.location(),
        };
        let response = copying
            .client
            .names
            .read_symlink(request)
            .await
            .about(&remote)?;
        let target = OsString::from_vec(response.into_inner().target.into());
        replace(&path, || std::os::unix::fs::symlink(&target, &path))?;
    } else {
        use rustix::fs::FileType;
        let kind = match attributes.kind() {
            FileKind::CharacterDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Fifo => FileType::Fifo,
            _ => FileType::Socket,
        };
        let mode = Mode::from_raw_mode(attributes.permissions & 0o777);
        let device = attributes.device_number;
        replace(&path, || {
            Ok(rustix::fs::mknodat(CWD, &path, kind, mode, device)?)
        })?;
    }
    finish(&mut copying, &remote, &path, &attributes).await
}

/// Gives a local file the remote one's attributes.
async fn finish(
    copying: &mut Copying,
    remote: &Remote,
    path: &Path,
    attributes: &Attributes,
) -> Result<()> {
    let xattrs = xattrs(copying, remote).await?;
    blocking(|| local::apply(path, attributes, &xattrs))
}

async fn xattrs(copying: &mut Copying, remote: &Remote) -> Result<Vec<(Bytes, Bytes)>> {
    let at = remote.location();
    let names = &mut copying.client.names;
    let request = ListXattrsRequest {
        at: at.clone(),
        no_follow: true,
        values: true,
    };
    let listed = names
        .list_xattrs(request)
        .await
        .about(remote)?
        .into_inner()
        .xattrs;
    let mut xattrs = Vec::with_capacity(listed.len());
    for xattr in listed {
        let value = match xattr.value {
            Some(value) => value,
            // It did not fit into the list.
            None => {
                let name = xattr.name.clone();
                let request = GetXattrRequest {
                    at: at.clone(),
                    no_follow: true,
                    name,
                };
                names
                    .get_xattr(request)
                    .await
                    .about(remote)?
                    .into_inner()
                    .value
            }
        };
        xattrs.push((xattr.name, value));
    }
    Ok(xattrs)
}
