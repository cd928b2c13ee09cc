//! From a configuration to a running node, and to its end.
//!
//! Start: sockets first, so that a wrong address is an error before a device is touched, and so that
//! health can be asked; then devices and volumes. A volume that cannot be mounted is reported, in
//! the log, in the list of volumes and by health (NOT_SERVING), and the others are served.
//!
//! End (a signal): health says NOT_SERVING, sockets are closed, long streams end by themselves,
//! requests get `grace` to finish, volumes are unmounted, the world is shut down. A second signal
//! ends the process at once; the volumes are then recovered at the next mount.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::config::{Config, ConfigError, LogFormat};
use crate::device::World;
use crate::failure::Failure;
use crate::node::Node;
use crate::{grpc, limits};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("another daemon listens on {0}")]
    Taken(PathBuf),
    #[error("the interface's descriptors are not valid")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("serving")]
    Transport(#[source] tonic::transport::Error),
    #[error("waiting for signals")]
    Signals(#[source] io::Error),
    #[error("shutting down: {0}")]
    Shutdown(Failure),
}

/// Sets up logging, to standard error.
pub fn start_logging(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log.filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // Only the first one counts; a test may have set up its own.
    let _ = match config.log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Sockets that listen, before anything answers on them.
pub struct Listeners {
    unix: Option<(UnixListener, PathBuf)>,
    tcp: Vec<TcpListener>,
}

impl Listeners {
    pub async fn bind(config: &Config) -> Result<Listeners, ServeError> {
        let unix = if config.listen.unix.as_os_str().is_empty() {
            None
        } else {
            let path = config.listen.unix.clone();
            Some((bind_unix(&path, config.unix_mode()?).await?, path))
        };
        let mut tcp = Vec::new();
        for address in &config.listen.tcp {
            let listener =
                TcpListener::bind(address)
                    .await
                    .map_err(|source| ServeError::Listen {
                        address: address.to_string(),
                        source,
                    })?;
            tracing::info!(address = ?listener.local_addr().ok(), "listening");
            tcp.push(listener);
        }
        Ok(Listeners { unix, tcp })
    }

    /// The TCP addresses, with the ports that were chosen.
    pub fn tcp_addresses(&self) -> Vec<std::net::SocketAddr> {
        self.tcp
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }
}

/// Binds a Unix socket; one that a dead daemon left behind is replaced.
async fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        address: path.display().to_string(),
        source,
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(ServeError::Taken(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => {
            return Err(failed(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file of that name that is no socket",
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, permissions).map_err(failed)?;
    tracing::info!(path = %path.display(), "listening");
    Ok(listener)
}

/// Serves until `end` is ready, then ends gracefully. The world is shut down in any case.
pub async fn run(
    config: &Config,
    listeners: Listeners,
    world: Arc<dyn World>,
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let node = Node::new(config.node_options(), world, health);
    node.report_not_ready().await;

    let mut routes = grpc::routes(&node);
    routes.add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes
        .add_service(reflection().build_v1().map_err(ServeError::Reflection)?)
        .add_service(
            reflection()
                .build_v1alpha()
                .map_err(ServeError::Reflection)?,
        );
    let closing = CancellationToken::new();
    let (mut servers, unix_path) = start_servers(listeners, routes.routes(), &closing);
    let janitor = tokio::spawn(node.clone().expire_handles());

    let result = tokio::select! {
        () = until_end(config, &node, end) => Ok(()),
        // A server that ends by itself has failed.
        Some(ended) = servers.join_next() => flatten(ended),
    };

    tracing::info!("shutting down");
    node.report_not_ready().await;
    node.ending.cancel();
    closing.cancel();
    if tokio::time::timeout(config.grace(), async {
        while servers.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        tracing::warn!(grace = ?config.grace(), "requests did not finish; connections are cut");
        servers.shutdown().await;
    }
    if let Some(path) = unix_path {
        // Gone already is fine.
        let _ = std::fs::remove_file(path);
    }
    janitor.abort();
    let shutdown = node.shut_down().await.map_err(ServeError::Shutdown);
    result.and(shutdown)
}

/// Mounts what is configured, and waits for the end, which may come before all is mounted.
async fn until_end(config: &Config, node: &Arc<Node>, end: impl Future<Output = ()>) {
    tokio::pin!(end);
    tokio::select! {
        biased;
        () = &mut end => return,
        () = mount_configured(config, node) => {}
    }
    node.report_ready().await;
    tracing::info!("ready");
    end.await;
}

async fn mount_configured(config: &Config, node: &Arc<Node>) {
    let mut broken = std::collections::BTreeMap::new();
    for device in &config.devices {
        if let Err(failure) = node.attach(&device.name, &device.source).await {
            tracing::error!(device = device.name, %failure, "device is not attached");
            broken.insert(device.name.as_str(), failure);
        }
    }
    for volume in &config.volumes {
        let result = match (broken.get(volume.device.as_str()), volume.options()) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Err(failure)) => Err(failure),
            (None, Ok(options)) => node
                .mount(&volume.device, &volume.name, options)
                .await
                .map(drop),
        };
        if let Err(failure) = result {
            let name = if volume.name.is_empty() {
                &volume.device
            } else {
                &volume.name
            };
            node.note_failed(name, &volume.device, failure).await;
        }
    }
    for export in &config.exports {
        if let Err(failure) = node.export(export.clone()).await {
            node.exports.note_failed(export.clone(), failure);
        }
    }
}

type ServerResult = Result<(), tonic::transport::Error>;

fn flatten(ended: Result<ServerResult, tokio::task::JoinError>) -> Result<(), ServeError> {
    match ended {
        Ok(result) => result.map_err(ServeError::Transport),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn start_servers(
    listeners: Listeners,
    routes: Routes,
    closing: &CancellationToken,
) -> (JoinSet<ServerResult>, Option<PathBuf>) {
    let mut servers = JoinSet::new();
    let mut unix_path = None;
    let server = || {
        Server::builder()
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
            .tcp_nodelay(true)
            .add_routes(routes.clone())
    };
    if let Some((listener, path)) = listeners.unix {
        let incoming = UnixListenerStream::new(listener);
        let closed = closing.clone().cancelled_owned();
        servers.spawn(server().serve_with_incoming_shutdown(incoming, closed));
        unix_path = Some(path);
    }
    for listener in listeners.tcp {
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let closed = closing.clone().cancelled_owned();
        servers.spawn(server().serve_with_incoming_shutdown(incoming, closed));
    }
    (servers, unix_path)
}

/// Signals closer together than this are one.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_millis(200);

/// Ready at the first SIGTERM or SIGINT. The second one ends the process, with status 1.
pub async fn signals() -> Result<impl Future<Output = ()>, ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let first = CancellationToken::new();
    let signalled = first.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "asked to end");
        first.cancel();
        // Some senders signal the process and at once its group: that is one request, not two.
        let asked = tokio::time::Instant::now();
        let name = loop {
            let name = next().await;
            if asked.elapsed() >= SECOND_SIGNAL_AFTER {
                break name;
            }
        };
        tracing::warn!(
            signal = name,
            "asked again: ending at once, volumes are not unmounted"
        );
        std::process::exit(1);
    });
    Ok(signalled.cancelled_owned())
}
