//! Volumes, devices, health.

use std::path::{Path, PathBuf};

use proto::v1::device_source::Source;
use proto::v1::image_file::Engine as EngineMessage;
use proto::v1::nvme_namespace::Transport;
use proto::v1::volume::State;
use proto::v1::*;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Session;
use crate::args::{self, Attach, Engine, Errors, Tuning};
use crate::client::Client;
use crate::error::{About, AboutFile, Exit, Failure, Result};
use crate::output::size_text;

pub async fn list(session: &mut Session, client: &mut Client) -> Result<()> {
    let volumes = all(client).await?;
    if session.output.json {
        let values = volumes.iter().map(volume_json).collect();
        session.output.value(&Value::Array(values));
        return Ok(());
    }
    let mut rows = vec![["NAME", "DEVICE", "STATE", "LABEL", "UUID", "OPEN"].map(str::to_owned)];
    for volume in &volumes {
        rows.push([
            volume.name.clone(),
            volume.device.clone(),
            state_name(volume.state()).to_owned(),
            volume.label.clone(),
            volume.uuid.clone(),
            volume.open_handles.to_string(),
        ]);
    }
    table(session, &rows);
    for volume in volumes.iter().filter(|volume| !volume.reason.is_empty()) {
        session
            .output
            .line(&format!("{}: {}", volume.name, volume.reason));
    }
    Ok(())
}

async fn all(client: &mut Client) -> Result<Vec<Volume>> {
    let response = client.volumes.list_volumes(ListVolumesRequest {}).await;
    Ok(response.about("listing volumes")?.into_inner().volumes)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Mounted => "mounted",
        State::ReadOnly => "read-only",
        State::Failed => "failed",
    }
}

fn volume_json(volume: &Volume) -> Value {
    json!({
        "name": volume.name,
        "device": volume.device,
        "state": state_name(volume.state()),
        "reason": volume.reason,
        "label": volume.label,
        "uuid": volume.uuid,
        "block_size": volume.block_size,
        "cluster_size": volume.cluster_size,
        "slot": volume.slot,
        "max_slots": volume.max_slots,
        "features": volume.features,
        "recovered": volume.recovered,
        "open_handles": volume.open_handles,
        "corrected_errors": volume.corrected_errors,
        "root_inode": volume.root_inode,
    })
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(session: &mut Session, rows: &[[String; N]]) {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        session.output.line(line.trim_end());
    }
}

/// Those that were named, or all that are mounted.
pub async fn chosen(client: &mut Client, volumes: Vec<String>) -> Result<Vec<String>> {
    if !volumes.is_empty() {
        return Ok(volumes);
    }
    let mounted = all(client)
        .await?
        .into_iter()
        .filter(|volume| volume.state() != State::Failed);
    Ok(mounted.map(|volume| volume.name).collect())
}

pub async fn df(session: &mut Session, client: &mut Client, volumes: Vec<String>) -> Result<()> {
    let mut stats = Vec::new();
    for volume in chosen(client, volumes).await? {
        let volume = volume
            .trim_end_matches(":/")
            .trim_end_matches(':')
            .to_owned();
        let request = StatVolumeRequest {
            volume: volume.clone(),
        };
        let response = client.volumes.stat_volume(request).await.about(&volume);
        stats.extend(session.keep(response).map(tonic::Response::into_inner));
    }
    if session.output.json {
        let values = stats.iter().map(|stat| {
            json!({
                "volume": stat.volume,
                "block_size": stat.block_size,
                "cluster_size": stat.cluster_size,
                "total_bytes": stat.total_bytes,
                "free_bytes": stat.free_bytes,
                "total_inodes": stat.total_inodes,
                "free_inodes": stat.free_inodes,
                "name_max_bytes": stat.name_max_bytes,
            })
        });
        let values = values.collect();
        session.output.value(&Value::Array(values));
        return Ok(());
    }
    let mut rows = vec![["VOLUME", "SIZE", "USED", "FREE", "USE%"].map(str::to_owned)];
    for stat in stats {
        let used = stat.total_bytes.saturating_sub(stat.free_bytes);
        let percent = used.saturating_mul(100).div_ceil(stat.total_bytes.max(1));
        rows.push([
            stat.volume,
            size_text(stat.total_bytes),
            size_text(used),
            size_text(stat.free_bytes),
            format!("{percent}%"),
        ]);
    }
    table(session, &rows);
    Ok(())
}

pub async fn sync(session: &mut Session, client: &mut Client, volumes: Vec<String>) -> Result<()> {
    for volume in chosen(client, volumes).await? {
        let request = SyncVolumeRequest {
            volume: volume.clone(),
        };
        let result = client.volumes.sync_volume(request).await.about(&volume);
        session.keep(result);
    }
    Ok(())
}

pub async fn devices(session: &mut Session, client: &mut Client) -> Result<()> {
    let response = client.volumes.list_devices(ListDevicesRequest {}).await;
    let devices = response.about("listing devices")?.into_inner().devices;
    if session.output.json {
        let values = devices.iter().map(device_json).collect();
        session.output.value(&Value::Array(values));
        return Ok(());
    }
    let mut rows = vec![["NAME", "SIZE", "BLOCK", "VOLUME", "KIND"].map(str::to_owned)];
    for device in devices {
        let read_only = if device.read_only { ", read-only" } else { "" };
        rows.push([
            device.name,
            size_text(device.size_bytes),
            device.block_size.to_string(),
            device.volume,
            format!("{}{read_only}", device.product),
        ]);
    }
    table(session, &rows);
    Ok(())
}

fn device_json(device: &Device) -> Value {
    let source = match device
        .source
        .as_ref()
        .and_then(|source| source.source.as_ref())
    {
        None => Value::Null,
        Some(Source::ImageFile(image)) => json!({ "type": "image-file", "path": image.path }),
        Some(Source::Memory(_)) => json!({ "type": "memory" }),
        Some(Source::Nvme(nvme)) => json!({
            "type": "nvme",
            "transport": nvme.transport().as_str_name(),
            "address": nvme.address,
            "service": nvme.service,
            "subsystem_nqn": nvme.subsystem_nqn,
            "namespace_id": nvme.namespace_id,
        }),
        Some(Source::Bdev(bdev)) => json!({ "type": "bdev", "bdev": bdev.name }),
    };
    json!({
        "name": device.name,
        "source": source,
        "size_bytes": device.size_bytes,
        "block_size": device.block_size,
        "volume": device.volume,
        "product": device.product,
        "read_only": device.read_only,
    })
}

pub async fn attach(session: &mut Session, client: &mut Client, what: Attach) -> Result<()> {
    let (name, source) = source(what)?;
    let source = Some(DeviceSource {
        source: Some(source),
    });
    let request = AttachDeviceRequest {
        name: name.clone(),
        source,
    };
    let response = client
        .volumes
        .attach_device(request)
        .await
        .about(&name)?
        .into_inner();
    if let (true, Some(device)) = (session.output.json, response.device) {
        session.output.value(&device_json(&device));
    }
    Ok(())
}

fn source(what: Attach) -> Result<(String, Source)> {
    Ok(match what {
        Attach::Image {
            name,
            path,
            block_size,
            engine,
            read_only,
        } => {
            let engine = match engine {
                Engine::Auto => EngineMessage::Unspecified,
                Engine::Aio => EngineMessage::Aio,
                Engine::Uring => EngineMessage::Uring,
            };
            let path = absolute(path)?;
            let image = ImageFile {
                path,
                block_size,
                engine: engine.into(),
                read_only,
            };
            (name, Source::ImageFile(image))
        }
        Attach::Memory {
            name,
            size,
            block_size,
        } => (
            name,
            Source::Memory(MemoryDisk {
                size_bytes: size,
                block_size,
            }),
        ),
        Attach::Nvme {
            name,
            pcie,
            tcp,
            vfio_user,
            nqn,
            namespace,
            host_nqn,
        } => {
            let (transport, address, service) = match (pcie, tcp, vfio_user) {
                (Some(address), _, _) => (Transport::Pcie, address, String::new()),
                (_, Some(target), _) => {
                    let (host, port) = target
                        .rsplit_once(':')
                        .ok_or_else(|| Failure::usage(format!("--tcp {target}: not HOST:PORT")))?;
                    let host = host.trim_start_matches('[').trim_end_matches(']');
                    (Transport::Tcp, host.to_owned(), port.to_owned())
                }
                (_, _, Some(directory)) => {
                    (Transport::VfioUser, absolute(directory)?, String::new())
                }
                (None, None, None) => {
                    return Err(Failure::usage(
                        "one of --pcie, --tcp and --vfio-user is needed",
                    ));
                }
            };
            let nvme = NvmeNamespace {
                transport: transport.into(),
                address,
                service,
                subsystem_nqn: nqn.unwrap_or_default(),
                namespace_id: namespace,
                host_nqn: host_nqn.unwrap_or_default(),
            };
            (name, Source::Nvme(nvme))
        }
        Attach::Bdev { name, bdev } => (name, Source::Bdev(ExistingBdev { name: bdev })),
    })
}

/// Relative to here; the daemon may be somewhere else.
fn absolute(path: PathBuf) -> Result<String> {
    let absolute = std::path::absolute(&path).about_file(&path)?;
    let not_text =
        |path: &Path| Failure::usage(format!("{}: the name is not UTF-8", path.display()));
    absolute
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| not_text(&absolute))
}

pub async fn detach(client: &mut Client, name: String) -> Result<()> {
    let request = DetachDeviceRequest { name: name.clone() };
    client.volumes.detach_device(request).await.about(&name)?;
    Ok(())
}

pub async fn mount(
    session: &mut Session,
    client: &mut Client,
    device: String,
    name: Option<String>,
    read_only: bool,
    errors: Errors,
    tuning: Tuning,
) -> Result<()> {
    let about = device.clone();
    let request = MountRequest {
        device,
        name: name.unwrap_or_default(),
        read_only,
        errors: match errors {
            Errors::RemountRo => ErrorPolicy::RemountRo,
            Errors::Panic => ErrorPolicy::Panic,
        }
        .into(),
        coherency: match tuning.coherency {
            args::Coherency::Full => Coherency::Full,
            args::Coherency::Buffered => Coherency::Buffered,
        }
        .into(),
        page_cache_bytes: tuning.page_cache,
        copy_on_write_bytes: tuning
            .copy_on_write
            .map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
        commit_interval_ms: tuning.commit_interval,
    };
    let response = client
        .volumes
        .mount(request)
        .await
        .about(about)?
        .into_inner();
    let Some(volume) = response.volume else {
        return Ok(());
    };
    if session.output.json {
        session.output.value(&volume_json(&volume));
    } else {
        let recovered = if volume.recovered { " (recovered)" } else { "" };
        session.output.line(&format!("{}{recovered}", volume.name));
    }
    Ok(())
}

pub async fn unmount(client: &mut Client, volume: String, force: bool) -> Result<()> {
    let request = UnmountRequest {
        volume: volume.clone(),
        close_handles: force,
    };
    client.volumes.unmount(request).await.about(&volume)?;
    Ok(())
}

pub async fn health(
    session: &mut Session,
    client: &mut Client,
    volume: Option<String>,
) -> Result<()> {
    let service = volume
        .as_ref()
        .map_or(String::new(), |name| format!("ocelot.volume/{name}"));
    let about = volume.as_deref().unwrap_or("health");
    let mut health = HealthClient::new(client.channel.clone());
    let status = match health.check(HealthCheckRequest { service }).await {
        Ok(response) => response.into_inner().status(),
        Err(status) if status.code() == Code::NotFound => ServingStatus::Unknown,
        Err(status) => return Err(Failure::of_status(about, &status)),
    };
    let word = match status {
        ServingStatus::Serving => "serving",
        ServingStatus::NotServing => "not-serving",
        ServingStatus::Unknown | ServingStatus::ServiceUnknown => "unknown",
    };
    if session.output.json {
        session.output.value(&json!({ "status": word }));
    } else {
        session.output.line(word);
    }
    match status {
        ServingStatus::Serving => Ok(()),
        ServingStatus::NotServing => {
            Err(Failure::new(Exit::Failed, format!("{about}: not serving")))
        }
        _ => Err(Failure::new(
            Exit::NotFound,
            format!("{about}: no such volume"),
        )),
    }
}

/// The client's version is told also where no daemon answers.
pub async fn version(session: &mut Session, server: &str) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let daemon = match Client::connect(server).await {
        Ok(mut client) => match client.node.info(InfoRequest {}).await {
            Ok(info) => Ok(info.into_inner()),
            Err(status) => Err(Failure::of_status(server, &status)),
        },
        Err(failure) => Err(failure),
    };
    if session.output.json {
        let daemon = daemon.as_ref().ok().map(|info| {
            json!({
                "name": info.name,
                "version": info.version,
                "uptime_seconds": info.uptime_seconds,
                "open_handles": info.open_handles,
                "max_handles": info.max_handles,
                "sessions": info.sessions,
            })
        });
        session
            .output
            .value(&json!({ "client": own, "daemon": daemon }));
    } else {
        session.output.line(&format!("ocelot {own}"));
        if let Ok(info) = &daemon {
            session.output.line(&format!(
                "ocelotd {} on {}, up {} s",
                info.version, info.name, info.uptime_seconds
            ));
        }
    }
    daemon.map(drop)
}
