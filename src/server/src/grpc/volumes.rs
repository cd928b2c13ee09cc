//! The `Volumes` service.

use proto::v1::device_source::Source;
use proto::v1::image_file::Engine;
use proto::v1::nvme_namespace::Transport;
use proto::v1::volume::State;
use proto::v1::volumes_server::Volumes;
use proto::v1::{self, *};
use tonic::{Request, Response, Status};

use super::{Api, ResponseStream};
use crate::device::{DEFAULT_BLOCK_SIZE, DeviceRecord, DeviceSource, ImageEngine, NvmeTransport};
use crate::door::{Coherency, OnError};
use crate::failure::{Failure, Result as Outcome};
use crate::mount_options::Wishes;
use crate::node::VolumeRecord;

#[tonic::async_trait]
impl Volumes for Api {
    async fn attach_device(
        &self,
        request: Request<AttachDeviceRequest>,
    ) -> Result<Response<AttachDeviceResponse>, Status> {
        let AttachDeviceRequest { name, source } = request.into_inner();
        let source = source_of_message(source)?;
        let record = self.node.attach(&name, &source).await?;
        Ok(Response::new(AttachDeviceResponse {
            device: Some(device(record, None)),
        }))
    }

    async fn detach_device(
        &self,
        request: Request<DetachDeviceRequest>,
    ) -> Result<Response<DetachDeviceResponse>, Status> {
        self.node.detach(&request.into_inner().name).await?;
        Ok(Response::new(DetachDeviceResponse {}))
    }

    async fn list_devices(
        &self,
        _: Request<ListDevicesRequest>,
    ) -> Result<Response<ListDevicesResponse>, Status> {
        let devices = self.node.devices().await?;
        let devices = devices
            .into_iter()
            .map(|(record, volume)| device(record, volume))
            .collect();
        Ok(Response::new(ListDevicesResponse { devices }))
    }

    async fn mount(
        &self,
        request: Request<MountRequest>,
    ) -> Result<Response<MountResponse>, Status> {
        let request = request.into_inner();
        let options = Wishes {
            read_only: request.read_only,
            on_error: on_error(request.errors)?,
            coherency: coherency(request.coherency)?,
            page_cache_bytes: request.page_cache_bytes,
            copy_on_write_bytes: request.copy_on_write_bytes,
            commit_interval_ms: request.commit_interval_ms,
        };
        let options = options.into_options()?;
        let record = self
            .node
            .mount(&request.device, &request.name, options)
            .await?;
        Ok(Response::new(MountResponse {
            volume: Some(volume(record)),
        }))
    }

    async fn unmount(
        &self,
        request: Request<UnmountRequest>,
    ) -> Result<Response<UnmountResponse>, Status> {
        let request = request.into_inner();
        self.node
            .unmount(&request.volume, request.close_handles)
            .await?;
        Ok(Response::new(UnmountResponse {}))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let volumes = self.node.volumes().await.into_iter().map(volume).collect();
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn stat_volume(
        &self,
        request: Request<StatVolumeRequest>,
    ) -> Result<Response<StatVolumeResponse>, Status> {
        let (name, volume) = self.node.volume(&request.into_inner().volume)?;
        let space = volume
            .call(|door| async move { door.statfs().await })
            .await
            .map_err(|failure| failure.volume(&name))?;
        Ok(Response::new(StatVolumeResponse {
            volume: name.to_string(),
            block_size: space.block_size,
            cluster_size: space.cluster_size,
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            total_inodes: space.total_inodes,
            free_inodes: space.free_inodes,
            name_max_bytes: space.name_max,
        }))
    }

    async fn get_counters(
        &self,
        request: Request<GetCountersRequest>,
    ) -> Result<Response<GetCountersResponse>, Status> {
        let (name, volume) = self.node.volume(&request.into_inner().volume)?;
        let counters = volume
            .call(|door| async move { Ok(door.counters()) })
            .await
            .map_err(|failure| failure.volume(&name))?;
        let (writes, pages) = (counters.writes, counters.pages);
        Ok(Response::new(GetCountersResponse {
            volume: name.to_string(),
            writes: Some(WriteCounters {
                requests: writes.requests,
                failed: writes.failed,
                cached: writes.cached,
                cached_bytes: writes.cached_bytes,
                in_place: writes.in_place,
                in_place_bytes: writes.in_place_bytes,
                inline: writes.inline,
                inline_bytes: writes.inline_bytes,
                unwritten: writes.unwritten,
                unwritten_bytes: writes.unwritten_bytes,
                hole: writes.hole,
                hole_bytes: writes.hole_bytes,
                copy_on_write: writes.copy_on_write,
                fallback_inline_data: writes.fallback_inline_data,
                fallback_no_append_direct: writes.fallback_no_append_direct,
                edges_serialised: writes.edges_serialised,
                commits_waited: writes.commits_waited,
            }),
            pages: Some(PageCounters {
                budget: pages.budget,
                cached: pages.cached,
                dirty: pages.dirty,
                hits: pages.hits,
                misses: pages.misses,
                read_ahead: pages.read_ahead,
                written_back: pages.written_back,
                evicted: pages.evicted,
            }),
        }))
    }

    async fn sync_volume(
        &self,
        request: Request<SyncVolumeRequest>,
    ) -> Result<Response<SyncVolumeResponse>, Status> {
        let (name, volume) = self.node.volume(&request.into_inner().volume)?;
        volume
            .call(|door| async move { door.sync().await })
            .await
            .map_err(|failure| failure.volume(&name))?;
        Ok(Response::new(SyncVolumeResponse {}))
    }

    type CheckStream = ResponseStream<CheckResponse>;

    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let (name, volume) = self.node.volume(&request.into_inner().volume)?;
        Ok(Response::new(super::check::serve(name.to_string(), volume)))
    }
}

fn volume(record: VolumeRecord) -> v1::Volume {
    let VolumeRecord {
        name,
        device,
        state,
        root,
        open_handles,
    } = record;
    let common = v1::Volume {
        name,
        device,
        root_inode: root,
        open_handles: open_handles as u64,
        ..v1::Volume::default()
    };
    match state {
        Err(failure) => v1::Volume {
            state: State::Failed.into(),
            reason: failure.to_string(),
            ..common
        },
        Ok(info) => {
            let state = if info.read_only.is_some() {
                State::ReadOnly
            } else {
                State::Mounted
            };
            v1::Volume {
                state: state.into(),
                reason: info.read_only.unwrap_or_default(),
                label: info.label,
                uuid: info.uuid,
                block_size: info.block_size,
                cluster_size: info.cluster_size,
                slot: u32::from(info.slot),
                max_slots: u32::from(info.max_slots),
                features: info.features,
                recovered: info.recovered,
                corrected_errors: info.corrected_errors,
                ..common
            }
        }
    }
}

fn device(record: DeviceRecord, volume: Option<String>) -> v1::Device {
    v1::Device {
        name: record.name,
        source: record.source.map(source_message),
        size_bytes: record.size_bytes,
        block_size: record.block_size,
        volume: volume.unwrap_or_default(),
        product: record.product,
        read_only: record.read_only,
    }
}

fn source_of_message(source: Option<v1::DeviceSource>) -> Outcome<DeviceSource> {
    let Some(source) = source.and_then(|source| source.source) else {
        return Err(Failure::field("source", "must be given"));
    };
    let block_size_or_default = |size: u32| if size == 0 { DEFAULT_BLOCK_SIZE } else { size };
    Ok(match source {
        Source::ImageFile(image) => {
            let engine = match image.engine() {
                Engine::Unspecified if image.engine != 0 => {
                    return Err(Failure::field(
                        "source.image_file.engine",
                        format!("{} is no engine", image.engine),
                    ));
                }
                Engine::Unspecified => ImageEngine::Auto,
                Engine::Aio => ImageEngine::Aio,
                Engine::Uring => ImageEngine::Uring,
            };
            DeviceSource::ImageFile {
                path: image.path,
                block_size: block_size_or_default(image.block_size),
                engine,
                read_only: image.read_only,
            }
        }
        Source::Memory(memory) => DeviceSource::Memory {
            size_bytes: memory.size_bytes,
            block_size: block_size_or_default(memory.block_size),
        },
        Source::Nvme(nvme) => {
            let transport = match nvme.transport() {
                Transport::Pcie => NvmeTransport::Pcie,
                Transport::Tcp => NvmeTransport::Tcp,
                Transport::VfioUser => NvmeTransport::VfioUser,
                Transport::Unspecified => {
                    return Err(Failure::field("source.nvme.transport", "must be given"));
                }
            };
            DeviceSource::Nvme {
                transport,
                address: nvme.address,
                service: nvme.service,
                subsystem_nqn: nvme.subsystem_nqn,
                namespace_id: nvme.namespace_id.max(1),
                host_nqn: nvme.host_nqn,
            }
        }
        Source::Bdev(bdev) => DeviceSource::Bdev { bdev: bdev.name },
    })
}

fn source_message(source: DeviceSource) -> v1::DeviceSource {
    let source = match source {
        DeviceSource::ImageFile {
            path,
            block_size,
            engine,
            read_only,
        } => {
            let engine = match engine {
                ImageEngine::Auto => Engine::Unspecified,
                ImageEngine::Aio => Engine::Aio,
                ImageEngine::Uring => Engine::Uring,
            };
            Source::ImageFile(v1::ImageFile {
                path,
                block_size,
                engine: engine.into(),
                read_only,
            })
        }
        DeviceSource::Memory {
            size_bytes,
            block_size,
        } => Source::Memory(v1::MemoryDisk {
            size_bytes,
            block_size,
        }),
        DeviceSource::Nvme {
            transport,
            address,
            service,
            subsystem_nqn,
            namespace_id,
            host_nqn,
        } => {
            let transport = match transport {
                NvmeTransport::Pcie => Transport::Pcie,
                NvmeTransport::Tcp => Transport::Tcp,
                NvmeTransport::VfioUser => Transport::VfioUser,
            };
            Source::Nvme(v1::NvmeNamespace {
                transport: transport.into(),
                address,
                service,
                subsystem_nqn,
                namespace_id,
                host_nqn,
            })
        }
        DeviceSource::Bdev { bdev } => Source::Bdev(v1::ExistingBdev { name: bdev }),
    };
    v1::DeviceSource {
        source: Some(source),
    }
}

fn coherency(wanted: i32) -> Outcome<Coherency> {
    match v1::Coherency::try_from(wanted) {
        Ok(v1::Coherency::Unspecified | v1::Coherency::Full) => Ok(Coherency::Full),
        Ok(v1::Coherency::Buffered) => Ok(Coherency::Buffered),
        Err(_) => Err(Failure::field(
            "coherency",
            format!("{wanted} is no kind of coherency"),
        )),
    }
}

fn on_error(policy: i32) -> Outcome<OnError> {
    match ErrorPolicy::try_from(policy) {
        Ok(ErrorPolicy::Unspecified | ErrorPolicy::RemountRo) => Ok(OnError::RemountReadOnly),
        Ok(ErrorPolicy::Panic) => Ok(OnError::Panic),
        Err(_) => Err(Failure::field("errors", format!("unknown policy {policy}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_go_there_and_back() {
        let sources = [
            DeviceSource::ImageFile {
                path: "/var/lib/x.img".into(),
                block_size: 4096,
                engine: ImageEngine::Uring,
                read_only: true,
            },
            DeviceSource::Memory {
                size_bytes: 1 << 30,
                block_size: 512,
            },
            DeviceSource::Nvme {
                transport: NvmeTransport::Tcp,
                address: "127.0.0.1".into(),
                service: "4420".into(),
                subsystem_nqn: "nqn.2024-01.x:y".into(),
                namespace_id: 3,
                host_nqn: String::new(),
            },
            DeviceSource::Bdev {
                bdev: "Malloc0".into(),
            },
        ];
        for source in sources {
            source.check("source").unwrap();
            let back = source_of_message(Some(source_message(source.clone()))).unwrap();
            assert_eq!(back, source);
        }
    }

    #[test]
    fn garbage_names_the_field() {
        assert_eq!(on_error(0).unwrap(), OnError::RemountReadOnly);
        assert_eq!(on_error(2).unwrap(), OnError::Panic);
        assert_eq!(on_error(3).unwrap_err().into_detail().field, "errors");
        let image = v1::ImageFile {
            path: "/x".into(),
            engine: 77,
            ..Default::default()
        };
        let source = v1::DeviceSource {
            source: Some(Source::ImageFile(image)),
        };
        let failure = source_of_message(Some(source)).unwrap_err();
        assert_eq!(failure.into_detail().field, "source.image_file.engine");
        let relative = DeviceSource::ImageFile {
            path: "x".into(),
            block_size: 512,
            engine: ImageEngine::Auto,
            read_only: false,
        };
        assert_eq!(
            relative.check("source").unwrap_err().into_detail().field,
            "source.path"
        );
    }
}
