//! The `Node` service.

use proto::v1::node_server;
use proto::v1::{InfoRequest, InfoResponse};
use tonic::{Request, Response, Status};

use super::Api;
use crate::limits;

#[tonic::async_trait]
impl node_server::Node for Api {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let node = &self.node;
        Ok(Response::new(InfoResponse {
            name: node.options.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: node.started.elapsed().as_secs(),
            max_message_bytes: limits::MAX_MESSAGE_BYTES as u64,
            max_io_bytes: limits::MAX_IO_BYTES as u64,
            max_io_in_flight: limits::IO_IN_FLIGHT as u32,
            open_handles: node.handles.count() as u64,
            max_handles: node.handles.most() as u64,
            idle_handle_seconds: u32::try_from(node.options.idle_handle.as_secs())
                .unwrap_or(u32::MAX),
            sessions: node.handles.sessions() as u64,
        }))
    }
}
