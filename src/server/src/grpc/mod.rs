//! The gRPC services: each translates requests into calls on the node, its volumes and open files,
//! and answers back. No rule of the file system lives here.

mod check;
mod convert;
mod exports;
mod files;
mod io;
mod io_stream;
mod namespace;
mod node;
mod volumes;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use proto::v1::exports_server::ExportsServer;
use proto::v1::files_server::FilesServer;
use proto::v1::namespace_server::NamespaceServer;
use proto::v1::node_server::NodeServer;
use proto::v1::volumes_server::VolumesServer;
use tonic::Status;
use tonic::service::{Routes, RoutesBuilder};

use crate::limits;
use crate::node::Node;

/// One implementation of all services.
#[derive(Clone)]
pub struct Api {
    node: Arc<Node>,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// All services of a node, but health and reflection.
pub fn routes(node: &Arc<Node>) -> RoutesBuilder {
    let api = Api { node: node.clone() };
    let mut routes = Routes::builder();
    macro_rules! add {
        ($($server:ident),*) => {
            $(routes.add_service(
                $server::new(api.clone())
                    .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(limits::MAX_MESSAGE_BYTES),
            );)*
        };
    }
    add!(
        VolumesServer,
        NamespaceServer,
        FilesServer,
        ExportsServer,
        NodeServer
    );
    routes
}
