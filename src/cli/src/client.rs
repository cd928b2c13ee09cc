//! The connection to the daemon, and the calls that several commands make.

use std::time::Duration;

use proto::v1::exports_client::ExportsClient;
use proto::v1::files_client::FilesClient;
use proto::v1::namespace_client::NamespaceClient;
use proto::v1::node_client::NodeClient;
use proto::v1::open_session_response::Event;
use proto::v1::volumes_client::VolumesClient;
use proto::v1::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::error::{About, Exit, Failure, Result};
use crate::path::Remote;

/// A connected client. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
    pub names: NamespaceClient<Channel>,
    pub files: FilesClient<Channel>,
    pub volumes: VolumesClient<Channel>,
    pub exports: ExportsClient<Channel>,
    pub node: NodeClient<Channel>,
}

impl Client {
    pub async fn connect(server: &str) -> Result<Client> {
        let invalid = |error: &dyn std::fmt::Display| {
            Failure::usage(format!(
                "--server {server}: {error} (unix:/path or http://host:port)"
            ))
        };
        if !(server.starts_with("unix:") || server.starts_with("http://")) {
            return Err(invalid(&"not an address"));
        }
        let channel = Endpoint::from_shared(server.to_owned())
            .map_err(|error| invalid(&error))?
            .connect_timeout(Duration::from_secs(10))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(32 << 20)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|error| {
                let mut innermost: &dyn std::error::Error = &error;
                while let Some(source) = innermost.source() {
                    innermost = source;
                }
                Failure::new(
                    Exit::Unreachable,
                    format!("{server}: no daemon answers: {innermost}"),
                )
            })?;
        macro_rules! client {
            ($client:ident) => {
                $client::new(channel.clone())
                    .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(proto::MAX_MESSAGE_BYTES)
            };
        }
        Ok(Client {
            names: client!(NamespaceClient),
            files: client!(FilesClient),
            volumes: client!(VolumesClient),
            exports: client!(ExportsClient),
            node: client!(NodeClient),
            channel,
        })
    }

    /// The attributes, or `None` if there is nothing of that name.
    pub async fn stat_if_any(&mut self, at: &Remote, follow: bool) -> Result<Option<Attributes>> {
        match self.stat(at, follow).await {
            Ok(attributes) => Ok(Some(attributes)),
            Err(failure) if failure.is(proto::errors::errno::ENOENT) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub async fn stat(&mut self, at: &Remote, follow: bool) -> Result<Attributes> {
        let request = StatRequest {
            at: at.location(),
            no_follow: !follow,
        };
        let response = self.names.stat(request).await.about(at)?.into_inner();
        response.attributes.ok_or_else(|| no_attributes(at))
    }

    /// All entries of a directory but "." and "..", with attributes, by name.
    pub async fn list(&mut self, at: &Remote) -> Result<Vec<DirectoryEntry>> {
        let request = ReadDirectoryRequest {
            at: at.location(),
            attributes: true,
            ..ReadDirectoryRequest::default()
        };
        let mut stream = self
            .names
            .read_directory(request)
            .await
            .about(at)?
            .into_inner();
        let mut entries = Vec::new();
        while let Some(message) = stream.message().await.about(at)? {
            entries.extend(message.entries);
        }
        entries.retain(|entry| entry.name != "." && entry.name != "..");
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Starts a session; files opened in it are closed when it is dropped.
    pub async fn session(&mut self) -> Result<Session> {
        let about = "starting a session";
        let request = OpenSessionRequest {
            client_name: format!("ocelot {}", std::process::id()),
        };
        let mut stream = self
            .files
            .open_session(request)
            .await
            .about(about)?
            .into_inner();
        match stream
            .message()
            .await
            .about(about)?
            .and_then(|message| message.event)
        {
            Some(Event::Started(started)) => Ok(Session {
                id: started.session,
                _stream: stream,
            }),
            _ => Err(Failure::of_status(
                about,
                &Status::internal("the daemon named none"),
            )),
        }
    }
}

pub fn no_attributes(at: &Remote) -> Failure {
    Failure::new(Exit::Failed, format!("{at}: the daemon sent no attributes"))
}

/// Keeps open files open.
pub struct Session {
    pub id: u64,
    _stream: Streaming<OpenSessionResponse>,
}
