use futures_util::FutureExt;

use super::*;

fn pooled() -> usize {
    POOL.with(|pool| pool.borrow().len())
}

fn pair() -> (Request, Io) {
    Request::new(Op::Read, 0, 512, Buffers::One(Buffer::zeroed(512)))
}

/// However a request ends, its slot serves the next one: a thousand of them need one slot.
#[test]
fn slots_are_reused_however_a_request_ends() {
    assert_eq!(pooled(), 0);
    for round in 0..1000 {
        let (request, io) = pair();
        assert_eq!(pooled(), 0, "the pooled slot was taken");
        match round % 5 {
            0 => {
                request.complete(Ok(()));
                io.now_or_never().unwrap().result.unwrap();
            }
            1 => {
                drop(io);
                request.complete(Ok(()));
            }
            2 => {
                request.complete(Ok(()));
                drop(io);
            }
            3 => {
                drop(request);
                let completion = io.now_or_never().unwrap();
                let kind = completion.result.unwrap_err().kind;
                assert_eq!(kind, DeviceErrorKind::Aborted);
            }
            _ => {
                drop(io);
                drop(request);
            }
        }
        assert_eq!(pooled(), 1);
    }
}

/// A completion that nobody fetched must not be the next request's.
#[test]
fn a_reused_slot_is_clean() {
    let (request, io) = pair();
    request.complete(Ok(()));
    drop(io);
    let (request, mut io) = pair();
    assert!((&mut io).now_or_never().is_none());
    request.complete(Ok(()));
    assert!(io.now_or_never().is_some());
}
