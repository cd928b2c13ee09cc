//! `ls`, `stat`, `readlink`.

use proto::v1::{Attributes, DirectoryEntry, FileKind, ReadSymlinkRequest};
use serde_json::{Map, Value, json};

use super::Session;
use crate::args::Ls;
use crate::client::Client;
use crate::error::{About, Result};
use crate::output::{
    attributes_json, kind_name, major_minor, mode_text, put_bytes, size_text, time_text,
};
use crate::path::Remote;

/// A line of a listing.
struct Line {
    name: Vec<u8>,
    kind: FileKind,
    inode: u64,
    attributes: Option<Attributes>,
    target: Option<Vec<u8>>,
}

pub async fn ls(session: &mut Session, client: &mut Client, args: Ls) -> Result<()> {
    let paths = if args.paths.is_empty() {
        vec![Remote::root("")]
    } else {
        args.paths.clone()
    };
    let mut directories = Vec::new();
    let mut files = Vec::new();
    for path in paths {
        // A link to a directory is followed, unless attributes are wanted: then it is a line.
        let stat = client.stat(&path, !(args.long || args.directory)).await;
        let Some(attributes) = session.keep(stat) else {
            continue;
        };
        let is_directory = attributes.kind() == FileKind::Directory;
        if is_directory && !args.directory {
            directories.push(path);
        } else {
            let name = Vec::from(path.to_string());
            files.push(line(client, &path, name, attributes, args.long).await?);
        }
    }
    let mut listings = Vec::new();
    if !files.is_empty() {
        listings.push(show(session, None, &files, &args));
    }
    let headings = args.recursive || directories.len() + usize::from(!files.is_empty()) > 1;
    let mut first = files.is_empty();
    let mut stack: Vec<Remote> = directories.into_iter().rev().collect();
    while let Some(directory) = stack.pop() {
        let list = client.list(&directory).await;
        let Some(mut entries) = session.keep(list) else {
            continue;
        };
        if !args.all {
            entries.retain(|entry| !entry.name.starts_with(b"."));
        }
        if args.recursive {
            let below = entries
                .iter()
                .rev()
                .filter(|entry| entry.kind() == FileKind::Directory);
            stack.extend(below.map(|entry| directory.join(&entry.name)));
        }
        let mut lines = Vec::with_capacity(entries.len());
        for entry in entries {
            lines.push(entry_line(client, &directory, entry, args.long).await);
        }
        if headings && !session.output.json {
            if !std::mem::take(&mut first) {
                session.output.line("");
            }
            session.output.line(&format!("{directory}:"));
        }
        listings.push(show(session, Some(&directory), &lines, &args));
    }
    if session.output.json {
        session
            .output
            .value(&Value::Array(listings.into_iter().flatten().collect()));
    }
    Ok(())
}

async fn line(
    client: &mut Client,
    path: &Remote,
    name: Vec<u8>,
    attributes: Attributes,
    long: bool,
) -> Result<Line> {
    let kind = attributes.kind();
    let target = match kind {
        FileKind::Symlink if long => Some(target(client, path).await?),
        _ => None,
    };
    Ok(Line {
        name,
        kind,
        inode: attributes.inode,
        attributes: Some(attributes),
        target,
    })
}

async fn entry_line(
    client: &mut Client,
    directory: &Remote,
    entry: DirectoryEntry,
    long: bool,
) -> Line {
    let kind = entry.kind();
    let target = match kind {
        // It may be gone by now.
        FileKind::Symlink if long => target(client, &directory.join(&entry.name)).await.ok(),
        _ => None,
    };
    Line {
        name: entry.name.into(),
        kind,
        inode: entry.inode,
        attributes: entry.attributes,
        target,
    }
}

async fn target(client: &mut Client, path: &Remote) -> Result<Vec<u8>> {
    let request = ReadSymlinkRequest {
        at: path.location(),
    };
    let response = client.names.read_symlink(request).await.about(path)?;
    Ok(response.into_inner().target.into())
}

/// Prints lines, or gives them as JSON.
fn show(
    session: &mut Session,
    directory: Option<&Remote>,
    lines: &[Line],
    args: &Ls,
) -> Option<Value> {
    if session.output.json {
        let entries: Vec<_> = lines.iter().map(line_json).collect();
        let mut object = Map::new();
        if let Some(directory) = directory {
            put_bytes(&mut object, "path", &directory.path);
        }
        object.insert("entries".into(), entries.into());
        return Some(object.into());
    }
    let width = |length: fn(&Attributes) -> usize| {
        lines
            .iter()
            .filter_map(|line| line.attributes.as_ref())
            .map(length)
            .max()
            .unwrap_or(1)
    };
    let links = width(|a| a.links.to_string().len());
    let uid = width(|a| a.uid.to_string().len());
    let gid = width(|a| a.gid.to_string().len());
    let size = width(|a| size_column(a).len());
    for line in lines {
        let mut text = Vec::new();
        if args.inode {
            text.extend_from_slice(format!("{:>10} ", line.inode).as_bytes());
        }
        if args.long {
            let columns = match &line.attributes {
                Some(a) => format!(
                    "{} {:>links$} {:>uid$} {:>gid$} {:>size$} {} ",
                    mode_text(a.kind(), a.permissions),
                    a.links,
                    a.uid,
                    a.gid,
                    size_column(a),
                    time_text(a.modified),
                ),
                None => format!("{} ? ", mode_text(line.kind, 0)),
            };
            text.extend_from_slice(columns.as_bytes());
        }
        text.extend_from_slice(&line.name);
        if let Some(target) = &line.target {
            text.extend_from_slice(b" -> ");
            text.extend_from_slice(target);
        }
        session.output.byte_line(&text);
    }
    None
}

fn size_column(attributes: &Attributes) -> String {
    match attributes.kind() {
        FileKind::CharacterDevice | FileKind::BlockDevice => {
            let (major, minor) = major_minor(attributes.device_number);
            format!("{major}, {minor}")
        }
        _ => attributes.size_bytes.to_string(),
    }
}

fn line_json(line: &Line) -> Value {
    let mut object = match &line.attributes {
        Some(attributes) => attributes_json(attributes),
        None => Map::from_iter([
            ("inode".to_owned(), line.inode.into()),
            ("kind".to_owned(), kind_name(line.kind).into()),
        ]),
    };
    put_bytes(&mut object, "name", &line.name);
    if let Some(target) = &line.target {
        put_bytes(&mut object, "target", target);
    }
    object.into()
}

pub async fn stat(
    session: &mut Session,
    client: &mut Client,
    paths: Vec<Remote>,
    follow: bool,
) -> Result<()> {
    let mut values = Vec::new();
    for path in paths {
        let stat = client.stat(&path, follow).await;
        let Some(attributes) = session.keep(stat) else {
            continue;
        };
        let target = match attributes.kind() {
            FileKind::Symlink => session.keep(target(client, &path).await),
            _ => None,
        };
        if session.output.json {
            let mut object = attributes_json(&attributes);
            put_bytes(&mut object, "path", &path.path);
            if let Some(target) = &target {
                put_bytes(&mut object, "target", target);
            }
            values.push(Value::Object(object));
        } else {
            show_stat(session, &path, &attributes, target.as_deref());
        }
    }
    if session.output.json {
        session.output.value(&Value::Array(values));
    }
    Ok(())
}

fn show_stat(session: &mut Session, path: &Remote, a: &Attributes, target: Option<&[u8]>) {
    let out = &mut session.output;
    let arrow = target.map_or(String::new(), |target| {
        format!(" -> {}", String::from_utf8_lossy(target))
    });
    out.line(&format!("  Path: {path}{arrow}"));
    out.line(&format!(
        "  Size: {} ({})  Allocated: {}  Kind: {}",
        a.size_bytes,
        size_text(a.size_bytes),
        a.allocated_bytes,
        kind_name(a.kind())
    ));
    out.line(&format!(
        " Inode: {}  Generation: {:#010x}  Links: {}",
        a.inode, a.generation, a.links
    ));
    if a.device_number != 0 {
        let (major, minor) = major_minor(a.device_number);
        out.line(&format!("Device: {major}, {minor}"));
    }
    out.line(&format!(
        "  Mode: {:04o} ({})  Uid: {}  Gid: {}",
        a.permissions,
        mode_text(a.kind(), a.permissions),
        a.uid,
        a.gid
    ));
    for (name, time) in [
        ("Access", a.accessed),
        ("Modify", a.modified),
        ("Change", a.changed),
    ] {
        let fraction = time.map_or(0, |time| time.nanoseconds);
        out.line(&format!("{name}: {}.{fraction:09} UTC", time_text(time)));
    }
}

pub async fn readlink(
    session: &mut Session,
    client: &mut Client,
    paths: Vec<Remote>,
) -> Result<()> {
    let mut values = Vec::new();
    for path in paths {
        let result = target(client, &path).await;
        let Some(target) = session.keep(result) else {
            continue;
        };
        if session.output.json {
            let mut object = Map::new();
            put_bytes(&mut object, "path", &path.path);
            put_bytes(&mut object, "target", &target);
            values.push(Value::Object(object));
        } else {
            session.output.byte_line(&target);
        }
    }
    if session.output.json {
        session.output.value(&json!(values));
    }
    Ok(())
}
