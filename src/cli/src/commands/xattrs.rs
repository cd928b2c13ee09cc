//! `xattr ls`, `get`, `set`, `rm`.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use bytes::Bytes;
use proto::v1::set_xattr_request::Mode;
use proto::v1::*;
use serde_json::{Map, Value};

use super::Session;
use crate::args::Xattr as Command;
use crate::client::Client;
use crate::error::{About, AboutFile, Result};
use crate::output::put_bytes;
use crate::path::Remote;

pub async fn run(session: &mut Session, client: &mut Client, command: Command) -> Result<()> {
    match command {
        Command::Ls { path, link } => list(session, client, &path, link.no_follow).await,
        Command::Get { path, name, link } => {
            let request = GetXattrRequest {
                at: path.location(),
                no_follow: link.no_follow,
                name: bytes(&name),
            };
            let response = client
                .names
                .get_xattr(request)
                .await
                .about(about(&path, &name))?;
            let value = response.into_inner().value;
            if session.output.json {
                let mut object = Map::new();
                put_bytes(&mut object, "name", name.as_bytes());
                put_bytes(&mut object, "value", &value);
                session.output.value(&object.into());
            } else {
                session.output.bytes(&value);
            }
            Ok(())
        }
        Command::Set {
            path,
            name,
            value,
            create,
            replace,
            link,
        } => {
            let value = match value {
                Some(value) => value.into_vec().into(),
                None => standard_input()?,
            };
            let mode = match (create, replace) {
                (true, _) => Mode::Create,
                (_, true) => Mode::Replace,
                _ => Mode::Unspecified,
            };
            let request = SetXattrRequest {
                at: path.location(),
                no_follow: link.no_follow,
                name: bytes(&name),
                value,
                mode: mode.into(),
            };
            client
                .names
                .set_xattr(request)
                .await
                .about(about(&path, &name))?;
            Ok(())
        }
        Command::Rm { path, name, link } => {
            let request = RemoveXattrRequest {
                at: path.location(),
                no_follow: link.no_follow,
                name: bytes(&name),
            };
            client
                .names
                .remove_xattr(request)
                .await
                .about(about(&path, &name))?;
            Ok(())
        }
    }
}

async fn list(
    session: &mut Session,
    client: &mut Client,
    path: &Remote,
    no_follow: bool,
) -> Result<()> {
    let values = session.output.json;
    let request = ListXattrsRequest {
        at: path.location(),
        no_follow,
        values,
    };
    let mut xattrs = client
        .names
        .list_xattrs(request)
        .await
        .about(path)?
        .into_inner()
        .xattrs;
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    if !session.output.json {
        for xattr in xattrs {
            session.output.byte_line(&xattr.name);
        }
        return Ok(());
    }
    let values = xattrs.iter().map(|xattr| {
        let mut object = Map::new();
        put_bytes(&mut object, "name", &xattr.name);
        object.insert("size_bytes".into(), xattr.size_bytes.into());
        if let Some(value) = &xattr.value {
            put_bytes(&mut object, "value", value);
        }
        Value::Object(object)
    });
    let values = values.collect();
    session.output.value(&Value::Array(values));
    Ok(())
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn about(path: &Remote, name: &OsString) -> String {
    format!("{path}: {}", name.display())
}

fn standard_input() -> Result<Bytes> {
    let mut value = Vec::new();
    // One byte more than the largest value there is: the daemon then says that it is too large.
    let limited = std::io::stdin().lock().take(65537).read_to_end(&mut value);
    limited.about_file(Path::new("standard input"))?;
    Ok(value.into())
}
