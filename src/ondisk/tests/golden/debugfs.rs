//! Runs OCFS2's own tools and picks values out of what they print.

use std::path::Path;
use std::process::{Command, Stdio};

/// Whether `mkfs.ocfs2` and `debugfs.ocfs2` can be run.
pub fn tools_are_here() -> bool {
    ["mkfs.ocfs2", "debugfs.ocfs2"]
        .iter()
        .all(|tool| command(tool).arg("-V").output().is_ok())
}

/// A tool; they are in a directory that is not on everybody's path.
fn command(tool: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(tool);
    let mut command = Command::new(if sbin.exists() {
        sbin.into_os_string()
    } else {
        tool.into()
    });
    command.stdin(Stdio::null());
    command
}

/// Makes a volume in an image file.
pub fn mkfs(image: &Path, block: u32, cluster: &str, journal: &str) {
    let output = command("mkfs.ocfs2")
        .args([
            "-q",
            "-F",
            "-N",
            "2",
            "-M",
            "local",
            "--fs-feature-level=max-features",
        ])
        .args([
            "-b",
            &block.to_string(),
            "-C",
            cluster,
            "-J",
            &format!("size={journal}"),
        ])
        .arg(image)
        .output()
        .expect("mkfs.ocfs2 runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What a command of debugfs prints.
pub fn run(image: &Path, request: &str) -> Report {
    let output = command("debugfs.ocfs2")
        .args(["-R", request])
        .arg(image)
        .output()
        .expect("debugfs.ocfs2 runs");
    Report(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Output of debugfs: `Key: value` anywhere, and tables below a heading.
pub struct Report(String);

impl Report {
    /// What follows the first `key:` on its line. A key that is the end of another one does not count.
    pub fn line(&self, key: &str) -> &str {
        self.lines(key)
            .next()
            .unwrap_or_else(|| panic!("no {key} in\n{}", self.0))
    }

    fn lines(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.lines().flat_map(move |line| {
            line.match_indices(key).filter_map(move |(at, _)| {
                let rest = line[at + key.len()..].strip_prefix(':')?;
                let before = &line[..at];
                (before.trim().is_empty() || before.ends_with("  ") || before.ends_with('\t'))
                    .then_some(rest.trim())
            })
        })
    }

    /// The words behind a key.
    pub fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        self.line(key).split_whitespace()
    }

    /// The first word behind a key.
    pub fn word(&self, key: &str) -> &str {
        self.words(key)
            .next()
            .unwrap_or_else(|| panic!("nothing behind {key}"))
    }

    /// The number behind a key.
    pub fn number(&self, key: &str) -> u64 {
        number(self.word(key))
    }

    /// The number behind the last occurrence of a key.
    pub fn last_number(&self, key: &str) -> u64 {
        let line = self.lines(key).last().unwrap_or_else(|| panic!("no {key}"));
        number(line.split_whitespace().next().expect("a number"))
    }

    /// The rows of numbers below the first heading that starts like this.
    pub fn rows(&self, heading: &str) -> Vec<Vec<u64>> {
        self.tables(heading).next().unwrap_or_default()
    }

    /// The rows below all headings that start like this.
    pub fn all_rows(&self, heading: &str) -> Vec<Vec<u64>> {
        self.tables(heading).flatten().collect()
    }

    fn tables(&self, heading: &str) -> impl Iterator<Item = Vec<Vec<u64>>> {
        let lines: Vec<&str> = self.0.lines().map(str::trim).collect();
        let starts: Vec<usize> = (0..lines.len())
            .filter(|&index| lines[index].starts_with(heading))
            .collect();
        starts.into_iter().map(move |start| {
            lines[start + 1..]
                .iter()
                .take_while(|line| line.starts_with(|first: char| first.is_ascii_digit()))
                .map(|line| {
                    line.split_whitespace()
                        .map_while(|word| word.parse().ok())
                        .collect()
                })
                .collect()
        })
    }
}

fn number(word: &str) -> u64 {
    let digits = word.trim_end_matches(|last: char| !last.is_ascii_digit());
    digits
        .parse()
        .unwrap_or_else(|_| panic!("{word} is no number"))
}
