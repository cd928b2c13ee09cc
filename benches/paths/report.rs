//! The figures as JSON, and as a plot of their ratios to the raw device.

use std::fmt::Write;

use serde_json::json;

use crate::{Load, Outcome, Plan, Row};

fn find<'p>(plan: &'p Plan, subject: &str, load: Load) -> Option<&'p Row> {
    plan.rows
        .iter()
        .find(|row| row.subject == subject && row.load == load)
}

/// To what the row is held against, if that was measured.
fn ratio(plan: &Plan, row: &Row) -> Option<f64> {
    find(plan, row.base, row.load).map(|base| row.iops / base.iops)
}

pub fn write(plan: &Plan) -> Outcome<()> {
    let rows: Vec<_> = plan
        .rows
        .iter()
        .map(|row| {
            let load = row.load;
            json!({
                "subject": row.subject,
                "operation": if load.read { "random read" } else { "random write" },
                "block_bytes": load.block,
                "depth": load.depth,
                "iops": row.iops.round(),
                "mib_per_second": (row.iops * f64::from(load.block) / f64::from(1 << 20)).round(),
                "mean_us": (f64::from(load.depth) / row.iops * 1e8).round() / 100.0,
                "held_against": row.base,
                "ratio": ratio(plan, row).map(|ratio| (ratio * 1000.0).round() / 1000.0),
            })
        })
        .collect();
    let document = json!({ "seconds": plan.seconds, "rows": rows, "left_out": plan.missing });
    let path = plan.folder.join("paths.json");
    std::fs::write(&path, format!("{document:#}\n"))?;
    let plot = plan.folder.join("paths.svg");
    std::fs::write(&plot, svg(plan)?)?;
    println!("{} and {}", path.display(), plot.display());
    Ok(())
}

const LEFT: f64 = 190.0;
const SCALE: f64 = 420.0;
const BAR: f64 = 15.0;
/// Ratios beyond it are cut, and told by their number.
const MOST: f64 = 1.25;

fn svg(plan: &Plan) -> Outcome<String> {
    let mut body = String::new();
    let mut y = 40.0;
    for load in Load::all() {
        writeln!(
            body,
            r#"<text x="10" y="{:.0}" font-weight="bold">random {}</text>"#,
            y + 12.0,
            load.name()
        )?;
        y += 20.0;
        for row in plan.rows.iter().filter(|row| row.load == load) {
            let Some(ratio) = ratio(plan, row) else {
                continue;
            };
            let width = ratio.min(MOST) * SCALE;
            let base = row.subject == row.base;
            let fill = match row.subject {
                _ if base => "#9aa5b1",
                name if name.starts_with("file") => "#2f6f9f",
                _ => "#c08a3e",
            };
            let against = if base {
                String::new()
            } else {
                format!(" of {}", row.base)
            };
            writeln!(
                body,
                r#"<text x="{:.0}" y="{:.1}" text-anchor="end">{}</text><rect x="{LEFT}" y="{:.1}" width="{width:.1}" height="{:.1}" fill="{fill}"/><text x="{:.1}" y="{:.1}">{ratio:.2}{against} ({:.0} k IOPS)</text>"#,
                LEFT - 6.0,
                y + 11.0,
                row.subject,
                y,
                BAR - 3.0,
                LEFT + width + 5.0,
                y + 11.0,
                row.iops / 1000.0
            )?;
            y += BAR;
        }
        y += 10.0;
    }
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="980" height="{:.0}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="20" font-size="14">Ways to a file, as ratios to the raw device reached the same way</text>
<line x1="{x:.1}" y1="30" x2="{x:.1}" y2="{y:.0}" stroke="#999999" stroke-dasharray="3,3"/>
{body}</svg>
"##,
        y + 10.0,
        x = LEFT + SCALE
    ))
}
