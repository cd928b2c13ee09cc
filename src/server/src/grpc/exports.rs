//! The `Exports` service.

use proto::v1::export::State;
use proto::v1::exports_server::Exports;
use proto::v1::{self, *};
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::export::{ExportAs, ExportRecord, ExportSpec};
use crate::failure::{Failure, Result as Outcome};

#[tonic::async_trait]
impl Exports for Api {
    async fn create_export(
        &self,
        request: Request<CreateExportRequest>,
    ) -> Result<Response<CreateExportResponse>, Status> {
        let spec = spec(request.into_inner())?;
        // To its end, also if the client gives up: half an export is nobody's.
        let node = self.node.clone();
        let record = run(async move { node.export(spec).await }).await?;
        Ok(Response::new(CreateExportResponse {
            export: Some(export(record)),
        }))
    }

    async fn list_exports(
        &self,
        _: Request<ListExportsRequest>,
    ) -> Result<Response<ListExportsResponse>, Status> {
        let exports = self.node.exports.list().into_iter().map(export).collect();
        Ok(Response::new(ListExportsResponse { exports }))
    }

    async fn remove_export(
        &self,
        request: Request<RemoveExportRequest>,
    ) -> Result<Response<RemoveExportResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(Failure::field("name", "must be given").into());
        }
        let node = self.node.clone();
        run(async move { node.remove_export(&name).await }).await?;
        Ok(Response::new(RemoveExportResponse {}))
    }
}

async fn run<T: Send + 'static>(
    work: impl Future<Output = Outcome<T>> + Send + 'static,
) -> Outcome<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(Failure::gone("the node")))
}

fn spec(request: CreateExportRequest) -> Outcome<ExportSpec> {
    let kind = match request.kind() {
        ExportKind::Bdev => ExportAs::Bdev,
        ExportKind::NvmeTcp => ExportAs::NvmeTcp,
        ExportKind::VfioUser => ExportAs::VfioUser,
        ExportKind::Unspecified => {
            return Err(Failure::field(
                "kind",
                format!("{} is no kind of export", request.kind),
            ));
        }
    };
    let place = convert::named_place("at", request.at)?;
    let spec = ExportSpec {
        volume: place.volume,
        path: place.path,
        base: place.inode.map(|inode| inode.0),
        generation: place.generation,
        kind,
        name: request.name,
        nqn: request.nqn,
        address: request.address,
        read_only: request.read_only,
        block_size: request.block_size,
    };
    spec.check("")?;
    Ok(spec)
}

fn export(record: ExportRecord) -> v1::Export {
    let ExportRecord {
        spec,
        inode,
        uuid,
        block_size,
        size_bytes,
        figures,
        failure,
    } = record;
    let kind = match spec.kind {
        ExportAs::Bdev => ExportKind::Bdev,
        ExportAs::NvmeTcp => ExportKind::NvmeTcp,
        ExportAs::VfioUser => ExportKind::VfioUser,
    };
    let state = match failure {
        None => State::Serving,
        Some(_) => State::Failed,
    };
    v1::Export {
        name: spec.name,
        volume: spec.volume,
        path: spec.path,
        inode,
        kind: kind.into(),
        nqn: spec.nqn,
        address: spec.address,
        read_only: spec.read_only,
        block_size,
        size_bytes,
        uuid,
        state: state.into(),
        reason: failure
            .map(|failure| failure.to_string())
            .unwrap_or_default(),
        counters: Some(v1::ExportCounters {
            reads: figures.reads,
            read_bytes: figures.read_bytes,
            writes: figures.writes,
            written_bytes: figures.written_bytes,
            durable_writes: figures.durable_writes,
            flushes: figures.flushes,
            unmaps: figures.unmaps,
            write_zeroes: figures.write_zeroes,
            resets: figures.resets,
            errors: figures.errors,
            copied: figures.copied,
            in_flight: figures.in_flight,
        }),
    }
}
