//! `fallocate`, `reflink`, `extents`, `seek`.

use proto::v1::allocate_request::Mode;
use proto::v1::seek_request::Target;
use proto::v1::*;
use serde_json::{Value, json};

use super::Session;
use super::names::owned;
use crate::client::Client;
use crate::error::{About, Exit, Failure, Result};
use crate::path::Remote;

/// What the flags ask for.
pub fn mode(punch_hole: bool, zero_range: bool) -> Mode {
    match (punch_hole, zero_range) {
        (true, _) => Mode::PunchHole,
        (_, true) => Mode::ZeroRange,
        _ => Mode::Unspecified,
    }
}

/// Opens a file for one call. The handle goes with [`close`].
async fn open(client: &mut Client, path: &Remote, flags: OpenFlags) -> Result<u64> {
    let request = OpenRequest {
        at: path.location(),
        flags: Some(flags),
        ..OpenRequest::default()
    };
    let response = client.files.open(request).await.about(path)?;
    Ok(response.into_inner().handle)
}

async fn close(client: &mut Client, path: &Remote, handle: u64) -> Result<()> {
    let request = CloseRequest { handle };
    client.files.close(request).await.about(path)?;
    Ok(())
}

pub async fn fallocate(
    client: &mut Client,
    path: &Remote,
    mode: Mode,
    keep_size: bool,
    offset: u64,
    length: u64,
) -> Result<()> {
    let flags = OpenFlags {
        write: true,
        ..OpenFlags::default()
    };
    let handle = open(client, path, flags).await?;
    let request = AllocateRequest {
        handle,
        offset,
        length,
        mode: mode.into(),
        keep_size,
    };
    let done = client.files.allocate(request).await.about(path);
    let closed = close(client, path, handle).await;
    done.and(closed)
}

pub async fn reflink(
    client: &mut Client,
    from: Remote,
    mut to: Remote,
    preserve: bool,
) -> Result<()> {
    if let Some(attributes) = client.stat_if_any(&to, true).await?
        && attributes.kind() == FileKind::Directory
    {
        to = to.join(from.name().unwrap_or(b"/"));
    }
    let new = owned(0).unwrap_or_default();
    let request = CloneFileRequest {
        from: from.location(),
        to: to.location(),
        no_follow: false,
        preserve,
        uid: new.uid,
        gid: new.gid,
    };
    let about = format_args!("{from} as {to}");
    client.names.clone_file(request).await.about(about)?;
    Ok(())
}

pub async fn extents(
    session: &mut Session,
    client: &mut Client,
    path: &Remote,
    no_follow: bool,
) -> Result<()> {
    let request = ListExtentsRequest {
        at: path.location(),
        no_follow,
        ..ListExtentsRequest::default()
    };
    let response = client.names.list_extents(request).await.about(path)?;
    let mut stream = response.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.about(path)? {
        for extent in message.extents {
            match session.output.json {
                true => all.push(value(&extent)),
                false => session.output.line(&line(&extent)),
            }
        }
    }
    if session.output.json {
        session.output.value(&Value::Array(all));
    }
    Ok(())
}

fn value(extent: &Extent) -> Value {
    json!({
        "logical": extent.logical,
        "physical": extent.physical,
        "length": extent.length,
        "unwritten": extent.unwritten,
        "shared": extent.shared,
        "inline": extent.inline,
    })
}

/// Place in the file, on the device, length, and what is special about it.
fn line(extent: &Extent) -> String {
    let flags = [
        (extent.unwritten, "unwritten"),
        (extent.shared, "shared"),
        (extent.inline, "inline"),
    ];
    let words = flags.iter().filter(|(is, _)| *is).map(|(_, word)| *word);
    let words = words.collect::<Vec<_>>().join(",");
    let (logical, physical, length) = (extent.logical, extent.physical, extent.length);
    format!("{logical:>16} {physical:>16} {length:>14} {words}")
        .trim_end()
        .to_owned()
}

pub async fn seek(
    session: &mut Session,
    client: &mut Client,
    path: &Remote,
    hole: bool,
    offset: u64,
) -> Result<()> {
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let handle = open(client, path, flags).await?;
    let target = match hole {
        true => Target::Hole,
        false => Target::Unspecified,
    };
    let request = SeekRequest {
        handle,
        offset,
        target: target.into(),
    };
    let found = client.files.seek(request).await.about(path);
    let closed = close(client, path, handle).await;
    let found = found?.into_inner().offset;
    closed?;
    if session.output.json {
        session.output.value(&json!({ "offset": found }));
    } else if let Some(found) = found {
        session.output.line(&found.to_string());
    }
    match found {
        Some(_) => Ok(()),
        None => {
            let what = if hole { "hole" } else { "data" };
            let message = format!("{path}: no {what} from byte {offset} on");
            Err(Failure::new(Exit::NotFound, message))
        }
    }
}
