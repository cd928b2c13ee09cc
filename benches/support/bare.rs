//! A bare tonic server of the `Files` service, with the daemon's settings: it looks at nothing, keeps
//! nothing, and answers in the right shapes.

use std::error::Error;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::v1::files_server::{Files, FilesServer};
use proto::v1::io_request::Operation;
use proto::v1::*;
use server::limits;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

type Failure = Box<dyn Error + Send + Sync>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Listens on a Unix socket and a TCP port of loopback; the port is in the file `port`.
pub fn serve(folder: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let unix = tokio::net::UnixListener::bind(folder.join("socket"))?;
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        tell_port(folder, tcp.local_addr()?.port())?;
        let server = || {
            let service = FilesServer::new(Bare)
                .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
            Server::builder()
                .initial_stream_window_size(limits::STREAM_WINDOW)
                .initial_connection_window_size(limits::CONNECTION_WINDOW)
                .tcp_nodelay(true)
                .add_service(service)
        };
        let (unix, tcp) = tokio::join!(
            server().serve_with_incoming(UnixListenerStream::new(unix)),
            server().serve_with_incoming(TcpListenerStream::new(tcp)),
        );
        unix?;
        Ok(tcp?)
    })
}

/// Written as a whole, so that who looks never sees a part.
pub fn tell_port(folder: &Path, port: u16) -> Result<(), Failure> {
    std::fs::write(folder.join("port.new"), port.to_string())?;
    std::fs::rename(folder.join("port.new"), folder.join("port"))?;
    Ok(())
}

struct Bare;

fn answer(request: IoRequest) -> IoResponse {
    static PAGE: [u8; proto::MAX_IO_BYTES] = [7; proto::MAX_IO_BYTES];
    let id = request.id;
    match request.operation {
        Some(Operation::Read(read)) => IoResponse {
            id,
            bytes: u64::from(read.length),
            data: Bytes::from_static(&PAGE[..read.length as usize]),
            ..IoResponse::default()
        },
        Some(Operation::Write(write)) => IoResponse {
            id,
            bytes: write.data.len() as u64,
            offset: write.offset,
            ..IoResponse::default()
        },
        _ => IoResponse {
            id,
            ..IoResponse::default()
        },
    }
}

fn none<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the bare server has no such method"))
}

#[tonic::async_trait]
impl Files for Bare {
    type OpenSessionStream = Answers<OpenSessionResponse>;
    type ReadStream = Answers<ReadResponse>;
    type IoStream = Answers<IoResponse>;

    async fn open(&self, _: Request<OpenRequest>) -> Result<Response<OpenResponse>, Status> {
        Ok(Response::new(OpenResponse {
            handle: 1,
            attributes: None,
        }))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let mut incoming = request.into_inner();
        let mut bytes_written = 0;
        while let Some(message) = incoming.message().await? {
            bytes_written += message.data.len() as u64;
        }
        Ok(Response::new(WriteResponse {
            bytes_written,
            ..WriteResponse::default()
        }))
    }

    async fn io(
        &self,
        request: Request<Streaming<IoRequest>>,
    ) -> Result<Response<Self::IoStream>, Status> {
        let answers = request.into_inner().map(|request| request.map(answer));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        none()
    }

    async fn close(&self, _: Request<CloseRequest>) -> Result<Response<CloseResponse>, Status> {
        none()
    }

    async fn get_attributes(
        &self,
        _: Request<GetAttributesRequest>,
    ) -> Result<Response<GetAttributesResponse>, Status> {
        none()
    }

    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        none()
    }

    async fn allocate(
        &self,
        _: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        none()
    }

    async fn seek(&self, _: Request<SeekRequest>) -> Result<Response<SeekResponse>, Status> {
        none()
    }

    async fn sync(&self, _: Request<SyncRequest>) -> Result<Response<SyncResponse>, Status> {
        none()
    }
}
