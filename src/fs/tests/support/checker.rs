//! Our own checker on images at rest, and its findings beside those of fsck.ocfs2.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use fs::Result;
use fs::check::{Event, Finding, Severity, Summary, check_device};
use runtime::sim::{DiskOptions, Image, SimDisk, Simulation};

/// What a check says.
#[derive(Debug)]
pub struct Checked {
    pub summary: Summary,
    pub findings: Vec<Finding>,
}

impl Checked {
    /// The codes of what is wrong.
    pub fn errors(&self) -> BTreeSet<&'static str> {
        let errors = self
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Error);
        errors.map(|finding| finding.code.name()).collect()
    }

    /// The codes of everything that was told.
    pub fn codes(&self) -> BTreeSet<&'static str> {
        self.findings
            .iter()
            .map(|finding| finding.code.name())
            .collect()
    }
}

/// Checks an image that nobody has mounted.
pub fn check_image(image: &Image) -> Result<Checked> {
    let sim = Simulation::new(1);
    sim.set_step_budget(u64::MAX);
    let disk = SimDisk::with(image.clone(), DiskOptions::default(), None);
    let mut findings = Vec::new();
    let mut observer = |event| {
        if let Event::Finding(finding) = event {
            findings.push(finding);
        }
        ControlFlow::Continue(())
    };
    let summary = sim
        .block_on(check_device(disk.device(), &mut observer))
        .expect("a check of one image waits for nobody")?;
    Ok(Checked { summary, findings })
}

/// Fails on any error.
pub fn assert_clean(image: &Image) {
    judge(check_image(image).expect("the image can be checked"));
}

/// As [`assert_clean`], unless the volume is in use: its journal says more than its blocks then.
pub fn assert_clean_at_rest(image: &Image) {
    match check_image(image) {
        Err(fs::Error::Busy(_)) => {}
        checked => judge(checked.expect("the image can be checked")),
    }
}

fn judge(checked: Checked) {
    let errors: Vec<&Finding> = checked
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect();
    assert!(checked.summary.is_clean(), "{errors:#?}");
}
