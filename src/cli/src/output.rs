//! What commands print: lines for people, JSON for programs.
//!
//! In JSON a name that is not UTF-8 is there twice: readable in `name`, exact in `name_hex`.

use std::io::{self, Write};

use proto::v1::{Attributes, FileKind, Time};
use serde_json::{Map, Value, json};

/// Standard output. A reader that has gone away (`| head`) ends the program quietly.
pub struct Output {
    pub json: bool,
    out: io::BufWriter<io::Stdout>,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Output {
            json,
            out: io::BufWriter::new(io::stdout()),
        }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        let result = self.out.write_all(bytes);
        self.check(result);
    }

    pub fn line(&mut self, line: &str) {
        let result = writeln!(self.out, "{line}");
        self.check(result);
    }

    /// A line that may hold names that are not text.
    pub fn byte_line(&mut self, line: &[u8]) {
        self.bytes(line);
        self.bytes(b"\n");
    }

    pub fn value(&mut self, value: &Value) {
        let result = serde_json::to_writer_pretty(&mut self.out, value)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(self.out));
        self.check(result);
    }

    pub fn flush(&mut self) {
        let result = self.out.flush();
        self.check(result);
    }

    fn check(&self, result: io::Result<()>) {
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => {
                complain(&format!("standard output: {error}"));
                std::process::exit(1);
            }
        }
    }
}

/// Says what went wrong.
pub fn complain(message: &str) {
    // If standard error is gone as well, nobody can be told.
    let _ = writeln!(io::stderr(), "ocelot: {message}");
}

pub fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Unspecified => "unknown",
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::CharacterDevice => "character-device",
        FileKind::BlockDevice => "block-device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

/// As `ls -l` shows it: "drwxr-xr-x".
pub fn mode_text(kind: FileKind, permissions: u32) -> String {
    let kind = match kind {
        FileKind::Unspecified => '?',
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = permissions >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, permissions & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// In UTC: "2026-11-23 20:24:08".
pub fn time_text(time: Option<Time>) -> String {
    let Some(time) = time else { return "-".into() };
    let days = time.seconds.div_euclid(86400);
    let second = time.seconds.rem_euclid(86400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Counts in eras of 400
/// years that begin with March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let since = days + 719_468;
    let era = since.div_euclid(146_097);
    let day_of_era = since.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// "1.5 GiB".
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts a byte string under `key`, and in hexadecimal under `key_hex` if it is not UTF-8.
pub fn put_bytes(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    object.insert(key.into(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        object.insert(format!("{key}_hex"), hex(bytes).into());
    }
}

pub fn attributes_json(attributes: &Attributes) -> Map<String, Value> {
    let time = |time: &Option<Time>| match time {
        Some(time) => json!({ "seconds": time.seconds, "nanoseconds": time.nanoseconds }),
        None => Value::Null,
    };
    let mut object = Map::new();
    object.insert("inode".into(), attributes.inode.into());
    object.insert("generation".into(), attributes.generation.into());
    object.insert("kind".into(), kind_name(attributes.kind()).into());
    object.insert(
        "mode".into(),
        format!("{:04o}", attributes.permissions).into(),
    );
    object.insert("links".into(), attributes.links.into());
    object.insert("uid".into(), attributes.uid.into());
    object.insert("gid".into(), attributes.gid.into());
    if attributes.device_number != 0 {
        let (major, minor) = major_minor(attributes.device_number);
        object.insert("device".into(), json!({ "major": major, "minor": minor }));
    }
    object.insert("size_bytes".into(), attributes.size_bytes.into());
    object.insert("allocated_bytes".into(), attributes.allocated_bytes.into());
    object.insert("accessed".into(), time(&attributes.accessed));
    object.insert("modified".into(), time(&attributes.modified));
    object.insert("changed".into(), time(&attributes.changed));
    object
}

/// The two halves of a device number, as Linux packs them in 64 bits.
pub fn major_minor(device: u64) -> (u64, u64) {
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000);
    let minor = (device & 0xff) | ((device >> 12) & 0xffff_ff00);
    (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_like_ls() {
        assert_eq!(mode_text(FileKind::Directory, 0o755), "drwxr-xr-x");
        assert_eq!(mode_text(FileKind::Regular, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode_text(FileKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode_text(FileKind::Regular, 0o2644), "-rw-r-Sr--");
    }

    #[test]
    fn times_of_all_ages() {
        let at = |seconds| {
            time_text(Some(Time {
                seconds,
                nanoseconds: 0,
            }))
        };
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(-1), "1969-12-31 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(4_107_542_399), "2100-02-28 23:59:59");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00");
    }

    #[test]
    fn sizes_are_rounded_for_people() {
        assert_eq!(size_text(1023), "1023 B");
        assert_eq!(size_text(1536), "1.5 KiB");
        assert_eq!(size_text(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn device_numbers_split() {
        assert_eq!(major_minor(0x0801), (8, 1));
        assert_eq!(major_minor(0x0010_0300), (3, 256));
    }

    #[test]
    fn names_that_are_not_text_are_exact_in_hex() {
        let mut object = Map::new();
        put_bytes(&mut object, "name", b"a\xff");
        assert_eq!(object["name_hex"], "61ff");
        put_bytes(&mut object, "other", b"a");
        assert!(!object.contains_key("other_hex"));
    }
}
