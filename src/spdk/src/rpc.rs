//! JSON-RPC calls of the SPDK in this process: its management interface, of which only a part is public C functions.
//!
//! SPDK serves it on a Unix socket. Ours is private: made in a folder of its own, connected once, and unlinked at once, so
//! that nobody else reaches it and nothing is left behind. It is polled only while calls wait for answers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::NonNull;
use std::rc::Rc;

use futures_channel::oneshot;
use serde_json::{Value, json};
use spdk_sys as sys;

use crate::error::{RpcError, StartError};
use crate::limits;
use crate::reactor::{self, Attention, ReactorHandle};

type Answer = Result<Value, (i64, String)>;

/// SPDK's management interface, from any thread.
#[derive(Debug, Clone)]
pub struct RpcClient {
    reactor: ReactorHandle,
}

impl RpcClient {
    pub(crate) fn new(reactor: ReactorHandle) -> Self {
        RpcClient { reactor }
    }

    /// Calls a method and waits for its answer. `params` is an object, or null for none.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let owned = method.to_owned();
        self.reactor
            .call(move || async move { call_here(&owned, params).await })
            .await
            .unwrap_or_else(|error| {
                Err(RpcError::Reactor {
                    method: method.to_owned(),
                    error,
                })
            })
    }
}

thread_local! {
    static SERVER: RefCell<Option<Rc<Server>>> = const { RefCell::new(None) };
}

/// The server and the one connection to it; on the main reactor.
struct Server {
    raw: NonNull<sys::spdk_rpc_server>,
    stream: RefCell<UnixStream>,
    next_id: Cell<u64>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Answer>>>,
    out: RefCell<Vec<u8>>,
    /// A task drives the connection.
    driven: Cell<bool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: made by `open`, closed once, on the thread that polled it.
        unsafe { sys::spdk_rpc_server_close(self.raw.as_ptr()) };
    }
}

/// Starts the server on this reactor, which is the main one.
pub(crate) fn open() -> std::io::Result<()> {
    let folder = tempfile::Builder::new().prefix("ocelot-spdk-").tempdir()?;
    let path = folder.path().join("rpc");
    let raw = listen(&path)
        .ok_or_else(|| std::io::Error::other(format!("cannot listen on {}", path.display())))?;
    let stream = UnixStream::connect(&path)?;
    stream.set_nonblocking(true)?;
    let server = Server {
        raw,
        stream: RefCell::new(stream),
        next_id: Cell::new(1),
        waiting: RefCell::default(),
        out: RefCell::default(),
        driven: Cell::new(false),
    };
    SERVER.with(|slot| *slot.borrow_mut() = Some(Rc::new(server)));
    Ok(())
    // The folder goes, socket and lock file with it; the connection stays.
}

fn listen(path: &Path) -> Option<NonNull<sys::spdk_rpc_server>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: SPDK copies the path.
    NonNull::new(unsafe { sys::spdk_rpc_server_listen(path.as_ptr()) })
}

/// SPDK's own server for others, such as `rpc.py`, at a path of the administrator's choice.
pub(crate) fn listen_for_others(path: &Path) -> Result<(), StartError> {
    let refused = || StartError::RpcSocket(path.to_owned());
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| refused())?;
    // SAFETY: a C string that is copied, on SPDK's main thread; [`close`] ends it.
    match unsafe { sys::spdk_rpc_initialize(name.as_ptr(), std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(refused()),
    }
}

/// Ends the servers; calls that wait are answered with an error.
pub(crate) fn close() {
    let server = SERVER.with(|slot| slot.borrow_mut().take());
    if let Some(server) = server {
        server.waiting.borrow_mut().clear();
    }
    // SAFETY: on SPDK's main thread; does nothing if there is none.
    unsafe { sys::spdk_rpc_finish() };
}

/// A call, on the main reactor.
pub(crate) async fn call_here(method: &str, params: Value) -> Result<Value, RpcError> {
    let broken = |why: &str| RpcError::Broken {
        method: method.to_owned(),
        why: why.to_owned(),
    };
    let server = SERVER
        .with(|slot| slot.borrow().clone())
        .ok_or_else(|| broken("this is not the main reactor, or it is stopping"))?;
    if server.waiting.borrow().len() >= limits::RPC_CALLS {
        return Err(RpcError::TooMany {
            method: method.to_owned(),
            limit: limits::RPC_CALLS,
        });
    }
    crate::nvmf::note_call(method, &params);
    let id = server.next_id.get();
    server.next_id.set(id + 1);
    let mut request = json!({ "jsonrpc": "2.0", "id": id, "method": method });
    if !params.is_null() {
        request["params"] = params;
    }
    let (sender, receiver) = oneshot::channel();
    server.waiting.borrow_mut().insert(id, sender);
    server.out.borrow_mut().extend(request.to_string().bytes());
    if !server.driven.replace(true) {
        reactor::spawn(drive(server.clone()));
    }
    drop(server);
    match receiver.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err((code, message))) => Err(RpcError::Refused {
            method: method.to_owned(),
            code,
            message,
        }),
        Err(_) => Err(broken("the connection to SPDK's RPC server ended")),
    }
}

/// Moves bytes until no call waits.
async fn drive(server: Rc<Server>) {
    let attention = Attention::new();
    let mut input = Vec::new();
    while !server.waiting.borrow().is_empty() {
        if let Err(error) = exchange(&server, &mut input) {
            tracing::error!(%error, "the connection to SPDK's own RPC server broke");
            server.waiting.borrow_mut().clear();
            break;
        }
        reactor::yield_now().await;
    }
    server.driven.set(false);
    drop(attention);
}

/// Writes what it can, lets SPDK work, reads and hands out what is there.
fn exchange(server: &Server, input: &mut Vec<u8>) -> std::io::Result<()> {
    let mut stream = server.stream.borrow_mut();
    let mut out = server.out.borrow_mut();
    if !out.is_empty() {
        match stream.write(&out) {
            Ok(count) => drop(out.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    drop(out);
    // SAFETY: the server lives, and this is the thread it was made on. Methods it runs may not close it.
    unsafe { sys::spdk_rpc_server_accept(server.raw.as_ptr()) };
    let mut chunk = [0u8; 16 * 1024];
    match stream.read(&mut chunk) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => input.extend_from_slice(&chunk[..count]),
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
    }
    if input.len() > limits::RPC_ANSWER_BYTES {
        return Err(std::io::Error::other("an answer without end"));
    }
    let mut answers = serde_json::Deserializer::from_slice(input).into_iter::<Value>();
    let mut consumed = 0;
    for answer in answers.by_ref() {
        match answer {
            Ok(answer) => hand_out(server, answer),
            // The rest has not arrived yet.
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error.into()),
        }
    }
    consumed += answers.byte_offset();
    input.drain(..consumed.min(input.len()));
    Ok(())
}

fn hand_out(server: &Server, mut answer: Value) {
    let Some(id) = answer["id"].as_u64() else {
        tracing::warn!(%answer, "SPDK answered what nobody asked");
        return;
    };
    let Some(sender) = server.waiting.borrow_mut().remove(&id) else {
        return;
    };
    let outcome = match answer.get("error") {
        Some(error) => Err((
            error["code"].as_i64().unwrap_or(0),
            error["message"].as_str().unwrap_or("?").to_owned(),
        )),
        None => Ok(answer["result"].take()),
    };
    // The caller may have lost interest.
    let _ = sender.send(outcome);
}
