//! The `Namespace` service.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use proto::v1::namespace_server::Namespace;
use proto::v1::{rename_request, set_xattr_request, *};
use tonic::{Request, Response, Status};

use super::convert::{self, Place};
use super::{Api, ResponseStream};
use crate::door::{Attr, CloneAs, Door, FileKind, Ino, RenameMode, SetAttr, XattrMode};
use crate::failure::{Failure, Result as Outcome};
use crate::limits;
use crate::volume::VolumeHandle;

/// A place on its way to the home thread.
pub(super) struct Target {
    pub volume_name: Arc<str>,
    pub volume: VolumeHandle,
    pub base: Base,
    pub path: Bytes,
}

/// Where a path starts.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub inode: Option<Ino>,
    pub generation: u32,
}

impl Base {
    /// The starting inode, if it is still the one that was meant.
    pub async fn find(self, door: &Rc<dyn Door>) -> Outcome<Ino> {
        let ino = self.inode.unwrap_or_else(|| door.root());
        if self.generation != 0 {
            let attr = door.getattr(ino).await?;
            if attr.generation != self.generation {
                return Err(Failure::new(
                    proto::errors::errno::ESTALE,
                    format!(
                        "inode {} has generation {}, not {}",
                        ino.0, attr.generation, self.generation
                    ),
                ));
            }
        }
        Ok(ino)
    }
}

impl Target {
    /// Adds what the request was about to a failure.
    pub fn blame(&self) -> impl FnOnce(Failure) -> Failure + use<> {
        let (path, volume) = (self.path.clone(), self.volume_name.clone());
        move |failure| failure.path(&path).volume(&volume)
    }

    /// Finds the inode and runs `work` on it, at home.
    pub async fn on_inode<T, F, Fut>(&self, follow: bool, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<dyn Door>, Ino) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<T>> + 'static,
    {
        let (base, path) = (self.base, self.path.clone());
        self.volume
            .call(move |door| async move {
                let base = base.find(&door).await?;
                // An empty path is the inode itself, whatever it is: nothing is followed.
                let ino = if path.is_empty() {
                    base
                } else {
                    door.resolve(base, &path, follow).await?.ino
                };
                work(door, ino).await
            })
            .await
            .map_err(self.blame())
    }

    /// Finds the directory of the last name and runs `work` on both, at home.
    async fn on_name<T, F, Fut>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<dyn Door>, Ino, Vec<u8>) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<T>> + 'static,
    {
        let (base, path) = (self.base, self.path.clone());
        self.volume
            .call(move |door| async move {
                let base = base.find(&door).await?;
                let (parent, name) = door.resolve_parent(base, &path).await?;
                work(door, parent, name).await
            })
            .await
            .map_err(self.blame())
    }
}

impl Api {
    pub(super) fn target(&self, place: Place) -> Outcome<Target> {
        let (volume_name, volume) = self.node.volume(&place.volume)?;
        let base = Base {
            inode: place.inode,
            generation: place.generation,
        };
        Ok(Target {
            volume_name,
            volume,
            base,
            path: place.path,
        })
    }

    fn at(&self, field: &str, location: Option<Location>) -> Outcome<Target> {
        self.target(convert::place(field, location)?)
    }

    fn at_name(&self, field: &str, location: Option<Location>) -> Outcome<Target> {
        self.target(convert::named_place(field, location)?)
    }

    /// Two names of one request: they have to be on one volume.
    fn two_places(&self, from: Place, to: Place) -> Outcome<(Target, Target)> {
        let (from, to) = (self.target(from)?, self.target(to)?);
        if from.volume_name != to.volume_name {
            return Err(Failure::new(
                proto::errors::errno::EXDEV,
                format!(
                    "from volume {:?} to volume {:?}",
                    from.volume_name, to.volume_name
                ),
            )
            .path(&from.path));
        }
        Ok((from, to))
    }

    /// Changes attributes of what a location or a handle names.
    async fn change(
        &self,
        at: Option<Location>,
        follow: bool,
        handle: u64,
        set: SetAttr,
    ) -> Outcome<Attr> {
        if handle == 0 {
            let target = self.at("at", at)?;
            return target
                .on_inode(follow, move |door, ino| async move {
                    door.setattr(ino, set).await
                })
                .await;
        }
        if at.is_some() {
            return Err(Failure::field(
                "handle",
                "is given beside `at`; only one may be",
            ));
        }
        let open = self.node.handles.get(handle)?;
        if set.size_bytes.is_some() && !open.flags.write {
            return Err(Failure::new(
                proto::errors::errno::EBADF,
                "the handle is not open for writing",
            )
            .handle(handle));
        }
        let ino = open.ino;
        let change = move |door: Rc<dyn Door>| async move { door.setattr(ino, set).await };
        open.file
            .volume()
            .call(change)
            .await
            .map_err(|failure| failure.handle(handle))
    }
}

fn made<T>(attr: &Attr, response: impl FnOnce(Option<Attributes>) -> T) -> Response<T> {
    Response::new(response(Some(convert::attributes(attr))))
}

#[tonic::async_trait]
impl Namespace for Api {
    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        let StatRequest { at, no_follow } = request.into_inner();
        let target = self.at("at", at)?;
        let attr = target
            .on_inode(
                !no_follow,
                |door, ino| async move { door.getattr(ino).await },
            )
            .await?;
        Ok(made(&attr, |attributes| StatResponse { attributes }))
    }

    async fn make_directory(
        &self,
        request: Request<MakeDirectoryRequest>,
    ) -> Result<Response<MakeDirectoryResponse>, Status> {
        let MakeDirectoryRequest { at, new } = request.into_inner();
        let new = convert::new_inode(new, 0o755)?;
        let attr = self
            .at_name("at", at)?
            .on_name(move |door, parent, name| async move { door.mkdir(parent, &name, new).await })
            .await?;
        Ok(made(&attr, |attributes| MakeDirectoryResponse {
            attributes,
        }))
    }

    async fn make_node(
        &self,
        request: Request<MakeNodeRequest>,
    ) -> Result<Response<MakeNodeResponse>, Status> {
        let MakeNodeRequest {
            at,
            new,
            kind,
            device_number,
        } = request.into_inner();
        let kind = convert::kind_of_message(kind)?;
        match kind {
            FileKind::Directory | FileKind::Symlink => {
                return Err(Failure::field("kind", "has a call of its own").into());
            }
            FileKind::CharDevice | FileKind::BlockDevice => {}
            _ if device_number != 0 => {
                return Err(Failure::field("device_number", "is for devices only").into());
            }
            _ => {}
        }
        let new = convert::new_inode(new, 0o644)?;
        let attr = self
            .at_name("at", at)?
            .on_name(move |door, parent, name| async move {
                door.mknod(parent, &name, kind, device_number, new).await
            })
            .await?;
        Ok(made(&attr, |attributes| MakeNodeResponse { attributes }))
    }

    async fn make_symlink(
        &self,
        request: Request<MakeSymlinkRequest>,
    ) -> Result<Response<MakeSymlinkResponse>, Status> {
        let MakeSymlinkRequest { at, target, new } = request.into_inner();
        if target.is_empty() || target.contains(&0) {
            return Err(Failure::field("target", "must be 1 or more bytes without NUL").into());
        }
        let new = convert::new_inode(new, 0o777)?;
        let attr = self
            .at_name("at", at)?
            .on_name(move |door, parent, name| async move {
                door.symlink(parent, &name, &target, new).await
            })
            .await?;
        Ok(made(&attr, |attributes| MakeSymlinkResponse { attributes }))
    }

    async fn read_symlink(
        &self,
        request: Request<ReadSymlinkRequest>,
    ) -> Result<Response<ReadSymlinkResponse>, Status> {
        let target = self
            .at("at", request.into_inner().at)?
            .on_inode(false, |door, ino| async move { door.readlink(ino).await })
            .await?;
        Ok(Response::new(ReadSymlinkResponse {
            target: target.into(),
        }))
    }

    async fn link(&self, request: Request<LinkRequest>) -> Result<Response<LinkResponse>, Status> {
        let LinkRequest { from, to, follow } = request.into_inner();
        let from = convert::place("from", from)?;
        let to = convert::named_place("to", to)?;
        let (from, to) = self.two_places(from, to)?;
        let ino = from
            .on_inode(follow, |_, ino| async move { Ok(ino) })
            .await?;
        let attr = to
            .on_name(move |door, parent, name| async move { door.link(ino, parent, &name).await })
            .await?;
        Ok(made(&attr, |attributes| LinkResponse { attributes }))
    }

    async fn clone_file(
        &self,
        request: Request<CloneFileRequest>,
    ) -> Result<Response<CloneFileResponse>, Status> {
        let CloneFileRequest {
            from,
            to,
            no_follow,
            preserve,
            uid,
            gid,
        } = request.into_inner();
        let whose = match preserve {
            true => CloneAs::Same,
            false => CloneAs::New { uid, gid },
        };
        let from = convert::place("from", from)?;
        let to = convert::named_place("to", to)?;
        let (from, to) = self.two_places(from, to)?;
        let ino = from
            .on_inode(!no_follow, |_, ino| async move { Ok(ino) })
            .await?;
        let clone = move |door: Rc<dyn Door>, parent, name: Vec<u8>| async move {
            door.clone_file(ino, parent, &name, whose).await
        };
        let attr = to.on_name(clone).await?;
        Ok(made(&attr, |attributes| CloneFileResponse { attributes }))
    }

    type ListExtentsStream = ResponseStream<ListExtentsResponse>;

    async fn list_extents(
        &self,
        request: Request<ListExtentsRequest>,
    ) -> Result<Response<Self::ListExtentsStream>, Status> {
        let ListExtentsRequest {
            at,
            no_follow,
            offset,
            max_extents,
        } = request.into_inner();
        let target = self.at("at", at)?;
        let ino = target
            .on_inode(!no_follow, |_, ino| async move { Ok(ino) })
            .await?;
        let left = if max_extents == 0 {
            u64::MAX
        } else {
            max_extents
        };
        let ending = self.node.ending.clone();
        let stream = stream::try_unfold((offset, left, target), move |(offset, left, target)| {
            let ending = ending.clone();
            async move {
                if left == 0 {
                    return Ok(None);
                }
                if ending.is_cancelled() {
                    return Err(Status::from(Failure::gone("the node")));
                }
                let max = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(limits::EXTENTS_BATCH);
                let some = target
                    .volume
                    .call(move |door| async move { door.extents(ino, offset, max).await })
                    .await
                    .map_err(target.blame())?;
                let Some(last) = some.last() else {
                    return Ok(None);
                };
                let next = last.logical.saturating_add(last.length);
                let next = (next, left - some.len() as u64, target);
                let extents = some.into_iter().map(convert::extent).collect();
                Ok(Some((ListExtentsResponse { extents }, next)))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn unlink(
        &self,
        request: Request<UnlinkRequest>,
    ) -> Result<Response<UnlinkResponse>, Status> {
        self.at_name("at", request.into_inner().at)?
            .on_name(|door, parent, name| async move { door.unlink(parent, &name).await })
            .await?;
        Ok(Response::new(UnlinkResponse {}))
    }

    async fn remove_directory(
        &self,
        request: Request<RemoveDirectoryRequest>,
    ) -> Result<Response<RemoveDirectoryResponse>, Status> {
        self.at_name("at", request.into_inner().at)?
            .on_name(|door, parent, name| async move { door.rmdir(parent, &name).await })
            .await?;
        Ok(Response::new(RemoveDirectoryResponse {}))
    }

    async fn rename(
        &self,
        request: Request<RenameRequest>,
    ) -> Result<Response<RenameResponse>, Status> {
        let RenameRequest { from, to, mode } = request.into_inner();
        let mode = match rename_request::Mode::try_from(mode) {
            Ok(rename_request::Mode::Unspecified) => RenameMode::Replace,
            Ok(rename_request::Mode::NoReplace) => RenameMode::NoReplace,
            Ok(rename_request::Mode::Exchange) => RenameMode::Exchange,
            Err(_) => return Err(Failure::field("mode", format!("{mode} is no mode")).into()),
        };
        let from = convert::named_place("from", from)?;
        let to = convert::named_place("to", to)?;
        let (from, to) = self.two_places(from, to)?;
        let (to_base, to_path) = (to.base, to.path.clone());
        from.on_name(move |door, parent, name| async move {
            let blame = |failure: Failure| failure.path(&to_path);
            let to_base = to_base.find(&door).await.map_err(blame)?;
            let (to_parent, to_name) = door
                .resolve_parent(to_base, &to_path)
                .await
                .map_err(blame)?;
            door.rename((parent, &name), (to_parent, &to_name), mode)
                .await
        })
        .await?;
        Ok(Response::new(RenameResponse {}))
    }

    type ReadDirectoryStream = ResponseStream<ReadDirectoryResponse>;

    async fn read_directory(
        &self,
        request: Request<ReadDirectoryRequest>,
    ) -> Result<Response<Self::ReadDirectoryStream>, Status> {
        let ReadDirectoryRequest {
            at,
            cookie,
            max_entries,
            attributes,
        } = request.into_inner();
        let target = self.at("at", at)?;
        let ino = target
            .on_inode(true, |_, ino| async move { Ok(ino) })
            .await?;
        let left = if max_entries == 0 {
            u64::MAX
        } else {
            max_entries
        };
        let ending = self.node.ending.clone();
        // One batch per message, fetched when the client has room for it.
        let stream = stream::try_unfold((cookie, left, target), move |(cookie, left, target)| {
            let ending = ending.clone();
            async move {
                if left == 0 {
                    return Ok(None);
                }
                if ending.is_cancelled() {
                    return Err(Status::from(Failure::gone("the node")));
                }
                let max = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(limits::READDIR_BATCH);
                let batch = target
                    .volume
                    .call(move |door| read_batch(door, ino, cookie, max, attributes))
                    .await
                    .map_err(target.blame())?;
                let Some(last) = batch.last() else {
                    return Ok(None);
                };
                let next = (last.cookie, left - batch.len() as u64, target);
                Ok(Some((ReadDirectoryResponse { entries: batch }, next)))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn set_attributes(
        &self,
        request: Request<SetAttributesRequest>,
    ) -> Result<Response<SetAttributesResponse>, Status> {
        let request = request.into_inner();
        let permissions = request
            .permissions
            .map(|bits| convert::permissions("permissions", bits))
            .transpose()?;
        let set = SetAttr {
            permissions,
            uid: request.uid,
            gid: request.gid,
            size_bytes: request.size_bytes,
            atime: convert::set_time("accessed", request.accessed)?,
            mtime: convert::set_time("modified", request.modified)?,
        };
        let attr = self
            .change(request.at, !request.no_follow, request.handle, set)
            .await?;
        Ok(made(&attr, |attributes| SetAttributesResponse {
            attributes,
        }))
    }

    async fn truncate(
        &self,
        request: Request<TruncateRequest>,
    ) -> Result<Response<TruncateResponse>, Status> {
        let TruncateRequest {
            at,
            handle,
            size_bytes,
        } = request.into_inner();
        let set = SetAttr {
            size_bytes: Some(size_bytes),
            ..SetAttr::default()
        };
        let attr = self.change(at, true, handle, set).await?;
        Ok(made(&attr, |attributes| TruncateResponse { attributes }))
    }

    async fn get_xattr(
        &self,
        request: Request<GetXattrRequest>,
    ) -> Result<Response<GetXattrResponse>, Status> {
        let GetXattrRequest {
            at,
            no_follow,
            name,
        } = request.into_inner();
        convert::xattr_name(&name)?;
        let value = self
            .at("at", at)?
            .on_inode(!no_follow, move |door, ino| async move {
                door.getxattr(ino, &name).await
            })
            .await?;
        Ok(Response::new(GetXattrResponse {
            value: value.into(),
        }))
    }

    async fn set_xattr(
        &self,
        request: Request<SetXattrRequest>,
    ) -> Result<Response<SetXattrResponse>, Status> {
        let SetXattrRequest {
            at,
            no_follow,
            name,
            value,
            mode,
        } = request.into_inner();
        convert::xattr_name(&name)?;
        let mode = match set_xattr_request::Mode::try_from(mode) {
            Ok(set_xattr_request::Mode::Unspecified) => XattrMode::Any,
            Ok(set_xattr_request::Mode::Create) => XattrMode::Create,
            Ok(set_xattr_request::Mode::Replace) => XattrMode::Replace,
            Err(_) => return Err(Failure::field("mode", format!("{mode} is no mode")).into()),
        };
        if value.len() > limits::XATTR_VALUE_MAX {
            return Err(Failure::new(
                proto::errors::errno::EFBIG,
                format!(
                    "value of {} bytes; at most {}",
                    value.len(),
                    limits::XATTR_VALUE_MAX
                ),
            )
            .into());
        }
        self.at("at", at)?
            .on_inode(!no_follow, move |door, ino| async move {
                door.setxattr(ino, &name, &value, mode).await
            })
            .await?;
        Ok(Response::new(SetXattrResponse {}))
    }

    async fn list_xattrs(
        &self,
        request: Request<ListXattrsRequest>,
    ) -> Result<Response<ListXattrsResponse>, Status> {
        let ListXattrsRequest {
            at,
            no_follow,
            values,
        } = request.into_inner();
        let xattrs = self
            .at("at", at)?
            .on_inode(!no_follow, move |door, ino| list_xattrs(door, ino, values))
            .await?;
        Ok(Response::new(ListXattrsResponse { xattrs }))
    }

    async fn remove_xattr(
        &self,
        request: Request<RemoveXattrRequest>,
    ) -> Result<Response<RemoveXattrResponse>, Status> {
        let RemoveXattrRequest {
            at,
            no_follow,
            name,
        } = request.into_inner();
        convert::xattr_name(&name)?;
        self.at("at", at)?
            .on_inode(!no_follow, move |door, ino| async move {
                door.removexattr(ino, &name).await
            })
            .await?;
        Ok(Response::new(RemoveXattrResponse {}))
    }
}

/// One message's worth of a directory.
async fn read_batch(
    door: Rc<dyn Door>,
    dir: Ino,
    cookie: u64,
    max: usize,
    attributes: bool,
) -> Outcome<Vec<DirectoryEntry>> {
    let mut batch = Vec::new();
    for entry in door.readdir(dir, cookie, max).await? {
        // An entry that is removed at this moment has no attributes any more; that is no failure.
        let attributes = if attributes {
            door.getattr(entry.ino).await.ok()
        } else {
            None
        };
        batch.push(DirectoryEntry {
            name: entry.name.into(),
            inode: entry.ino.0,
            kind: entry
                .kind
                .map_or(proto::v1::FileKind::Unspecified, convert::kind)
                .into(),
            cookie: entry.next,
            attributes: attributes.as_ref().map(convert::attributes),
        });
    }
    Ok(batch)
}

async fn list_xattrs(door: Rc<dyn Door>, ino: Ino, values: bool) -> Outcome<Vec<Xattr>> {
    let mut room = limits::XATTR_LIST_BYTES;
    let mut xattrs = Vec::new();
    for (name, size_bytes) in door.listxattr(ino).await? {
        let fits = usize::try_from(size_bytes).is_ok_and(|size| size <= room);
        let value = match values && fits {
            true => door.getxattr(ino, &name).await.ok(),
            false => None,
        };
        room -= value.as_ref().map_or(0, Vec::len).min(room);
        xattrs.push(Xattr {
            name: name.into(),
            size_bytes,
            value: value.map(Bytes::from),
        });
    }
    Ok(xattrs)
}
