//! Pages against a byte array, with write-backs that are under way meanwhile and that fail.

use proptest::prelude::*;

use super::*;

const SPAN: u64 = 24;

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: u64,
        len: u64,
        byte: u8,
    },
    Start(u64, usize),
    /// The oldest write-back ends, well or not.
    End(bool),
    Invalidate(u64, u64),
    Evict(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = SPAN * PAGE_BYTES as u64;
    prop_oneof![
        4 => (0..bytes - 1, 1..9000u64, any::<u8>())
            .prop_map(move |(at, len, byte)| Step::Write { at, len: len.min(bytes - at), byte }),
        2 => (0..SPAN, 1..6usize).prop_map(|(at, max)| Step::Start(at, max)),
        2 => any::<bool>().prop_map(Step::End),
        1 => (0..SPAN, 1..8u64).prop_map(|(at, len)| Step::Invalidate(at, len)),
        1 => (1..30usize).prop_map(Step::Evict),
    ]
}

fn buffer() -> Buffer {
    Buffer::zeroed(PAGE_BYTES)
}

proptest! {
    /// What users see is the cache's page if there is one, else the device's: that is the model,
    /// whatever was written back, dropped or evicted meanwhile.
    #[test]
    fn users_see_what_was_written(steps in proptest::collection::vec(step(), 1..120)) {
        let ledger = Ledger::new(64 * PAGE_BYTES);
        let pages = Pages::new(BlockNr(7), ledger.clone());
        let mut device = vec![0u8; (SPAN as usize) * PAGE_BYTES];
        let mut model = device.clone();
        let mut under_way: Vec<Run> = Vec::new();
        let now = Duration::ZERO;
        let place = |index: u64| index as usize * PAGE_BYTES;
        for step in steps {
            match step {
                Step::Write { at, len, byte } => {
                    let mut room = ledger.try_room(8).expect("64 pages have room for 24");
                    for index in pages_of(at, at + len) {
                        let start = index * PAGE_BYTES as u64;
                        let (from, to) = (at.max(start), (at + len).min(start + PAGE_BYTES as u64));
                        if pages.get(index).is_none() {
                            // As a writer does with a page that it does not fill.
                            let mut bytes = buffer();
                            bytes.copy_from_slice(&device[place(index)..place(index) + PAGE_BYTES]);
                            pages.fill(index, Arc::new(bytes), &mut room);
                        }
                        let data = vec![byte; (to - from) as usize];
                        pages.write(index, (from - start) as usize, &data, now, &mut room, buffer);
                        model[from as usize..to as usize].fill(byte);
                    }
                }
                Step::Start(at, max) => {
                    under_way.extend(pages.start_writing(at..SPAN, max, u64::MAX));
                }
                Step::End(well) if !under_way.is_empty() => {
                    let run = under_way.remove(0);
                    if well {
                        for (index, bytes) in run.range().zip(&run.pages) {
                            device[place(index)..place(index) + PAGE_BYTES].copy_from_slice(bytes);
                        }
                    }
                    pages.written(run.range(), well, now);
                }
                Step::End(_) => {}
                Step::Invalidate(at, len) => pages.invalidate(at..at + len),
                Step::Evict(most) => {
                    for index in (0..SPAN).take(most) {
                        if matches!(pages.evict(index), Hand::Evicted) {
                            ledger.left(1);
                        }
                    }
                }
            }
            let seen: Vec<u8> = (0..SPAN)
                .flat_map(|index| match pages.get(index) {
                    Some(bytes) => bytes.to_vec(),
                    None => device[place(index)..place(index) + PAGE_BYTES].to_vec(),
                })
                .collect();
            prop_assert!(seen == model);
            let map = pages.map.borrow();
            let count = |what: fn(&Page) -> bool| map.values().filter(|page| what(page)).count();
            prop_assert_eq!(pages.dirty.get(), count(|page| page.dirty));
            prop_assert_eq!(pages.writing.get(), count(|page| page.writing));
            prop_assert_eq!(ledger.dirty(), pages.dirty.get() + pages.writing.get());
            prop_assert_eq!(ledger.counts().cached, map.len() as u64);
            prop_assert_eq!(pages.is_dirty(), pages.dirty_since().is_some());
        }
        drop(pages);
        prop_assert_eq!((ledger.dirty(), ledger.counts().cached), (0, 0));
    }
}

#[test]
fn promises_are_counted_once() {
    let pages = Pages::new(BlockNr(7), Ledger::new(1 << 20));
    assert_eq!(pages.delay(10..20), 10);
    assert_eq!(pages.delay(15..25), 5);
    assert_eq!(pages.delayed(), 15);
    assert_eq!(pages.not_delayed(5..30), [5..10, 25..30]);
    assert_eq!(pages.undelay(0..12), 2);
    assert_eq!(pages.undelay(0..12), 0);
    assert_eq!(pages.undelay(12..12), 0);
    assert_eq!(pages.undelay(0..u32::MAX), 13);
    assert_eq!(pages.delayed(), 0);
}

#[test]
fn room_is_never_promised_twice() {
    let ledger = Ledger::new(10 * PAGE_BYTES);
    let first = ledger.try_room(6).expect("nothing is held");
    assert!(ledger.try_room(5).is_none());
    let second = ledger.try_room(4);
    assert!(second.is_some());
    drop(first);
    assert!(ledger.try_room(6).is_some());
    assert!(ledger.try_room(7).is_none());
}

#[test]
fn a_page_that_is_read_meanwhile_does_not_change() {
    let ledger = Ledger::new(1 << 20);
    let pages = Pages::new(BlockNr(7), ledger.clone());
    let mut room = ledger.try_room(2).expect("empty");
    let write = |byte: u8, room: &mut Room| {
        pages.write(3, 100, &[byte; 10], Duration::ZERO, room, buffer);
    };
    write(1, &mut room);
    let reader = pages.get(3).expect("cached");
    write(2, &mut room);
    assert_eq!((reader[99], reader[100], reader[110]), (0, 1, 0));
    assert_eq!(pages.get(3).expect("cached")[109], 2);
    // The end of the file moves before it: what is dirty behind it is zero.
    pages.extend(3 * PAGE_BYTES as u64 + 110);
    pages.cut(3 * PAGE_BYTES as u64 + 105, buffer);
    let cut = pages.get(3).expect("cached");
    assert_eq!((cut[104], cut[105]), (2, 0));
    assert_eq!(pages.end(), 3 * PAGE_BYTES as u64 + 105);
}
