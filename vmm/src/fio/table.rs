//! Tables: what standard output, `results.md` and the page show.

use super::chart::{Escaped, short, time};
use super::compare::Comparison;
use super::results::{Figures, PERCENTILES, Results};
use super::summary::{Cell, Load, cpu_percent, of_direction, per_command};
use crate::guest_command::tail::printable;

/// Rows of text under a head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// What it shows; empty if that is plain.
    pub title: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// As many cells each.
    pub rows: Vec<Vec<String>>,
    /// How many columns at the left hold words.
    pub words: usize,
}

/// Stands where a figure is not known.
const UNKNOWN: &str = "–";

impl Table {
    /// Leaves out columns without any figure, such as those of berth where all ran on the host.
    fn drop_unknown(&mut self) {
        for column in (self.words..self.head.len()).rev() {
            if self.rows.iter().all(|row| row[column] == UNKNOWN) {
                self.head.remove(column);
                for row in &mut self.rows {
                    row.remove(column);
                }
            }
        }
    }

    /// In columns, for a terminal.
    pub fn text(&self) -> String {
        // Names of older results may be anybody's.
        let table = self.map(&|text| printable(text));
        table.columns()
    }

    fn map(&self, of: &dyn Fn(&str) -> String) -> Self {
        let all = |cells: &Vec<String>| cells.iter().map(|cell| of(cell)).collect();
        Self {
            title: of(&self.title),
            head: all(&self.head),
            rows: self.rows.iter().map(all).collect(),
            words: self.words,
        }
    }

    fn columns(&self) -> String {
        let length = |text: &String| text.chars().count();
        let mut widths: Vec<usize> = self.head.iter().map(length).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(cell));
            }
        }
        let line = |cells: &Vec<String>| {
            let cells = cells.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| {
                let fill = " ".repeat(width.saturating_sub(length(cell)));
                if column < self.words {
                    format!("{cell}{fill}")
                } else {
                    format!("{fill}{cell}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            format!("{}\n", line.trim_end())
        };
        let mut text = String::new();
        if !self.title.is_empty() {
            text += &format!("{}\n", self.title);
        }
        text += &line(&self.head);
        text + &self.rows.iter().map(line).collect::<String>()
    }

    /// As Markdown (GitHub's tables).
    pub fn markdown(&self) -> String {
        // A bar would begin a cell.
        let cell = |text: &String| markdown(text).replace('|', "\\|");
        let line = |cells: &Vec<String>| {
            let cells: Vec<String> = cells.iter().map(cell).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = String::new();
        if !self.title.is_empty() {
            text += &format!("### {}\n\n", markdown(&self.title));
        }
        text += &line(&self.head);
        let columns = 0..self.head.len();
        let rules = columns.map(|column| if column < self.words { "---" } else { "---:" });
        text += &format!("| {} |\n", rules.collect::<Vec<_>>().join(" | "));
        text + &self.rows.iter().map(line).collect::<String>() + "\n"
    }

    /// As HTML, without its title.
    pub fn html(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            let cells = cells.iter().enumerate().map(|(column, cell)| {
                let class = if column < self.words {
                    " class=\"word\""
                } else {
                    ""
                };
                format!("<{tag}{class}>{}</{tag}>", Escaped(cell))
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "td")).collect();
        format!(
            "<div class=\"table\"><table><thead>{}</thead>\n<tbody>{rows}</tbody></table></div>\n",
            row(&self.head, "th")
        )
    }
}

/// A text in a line of Markdown, where nothing becomes HTML.
pub fn markdown(text: &str) -> String {
    text.replace('\n', " ")
        .replace('&', "&amp;")
        .replace('<', "&lt;")
}

/// A load's figures: a row for each depth and setting.
pub fn load(load: &Load<'_>, results: &Results) -> Table {
    let head = [
        "depth",
        "setting",
        "IOPS",
        "MB/s",
        "mean",
        "50 %",
        "90 %",
        "99 %",
        "99.9 %",
        "fio usr",
        "sys",
        "vCPUs",
        "I/O threads",
        "exits/IO",
        "wake-ups/IO",
        "irqs/IO",
    ];
    let mut table = Table {
        title: load.title.clone(),
        head: head.map(str::to_owned).to_vec(),
        rows: Vec::new(),
        words: 2,
    };
    for row in &load.rows {
        for (cell, setting) in row.cells.iter().zip(&results.settings) {
            let Some(cell) = cell else { continue };
            let mut cells = vec![row.depth.to_string(), setting.name.clone()];
            cells.extend(figures(cell, load.direction));
            table.rows.push(cells);
        }
    }
    table.drop_unknown();
    table
}

fn figures(cell: &Cell<'_>, direction: &'static str) -> Vec<String> {
    let text = |value: Option<super::chart::Value>, of: &dyn Fn(f64) -> String| {
        value.map_or(UNKNOWN.to_owned(), |value| of(value.value))
    };
    let mut cells = Vec::new();
    let iops = cell.value(of_direction(direction, |it| Some(it.iops)));
    cells.push(text(iops, &short));
    let bandwidth = cell.value(of_direction(direction, |it| Some(it.bandwidth / 1e6)));
    cells.push(text(bandwidth, &megabytes));
    // A job may have turned latencies off.
    let mean = of_direction(direction, |it| {
        Some(it.total.mean).filter(|mean| *mean > 0.0)
    });
    let mean = cell.value(mean);
    cells.push(text(mean, &time));
    for percent in PERCENTILES {
        // Latencies are far below 2^52 ns.
        let of = of_direction(direction, move |it| Some(it.percentile(percent)? as f64));
        cells.push(text(cell.value(of), &time));
    }
    let percent = |value: f64| format!("{value:.0} %");
    cells.push(text(cell.value(|it| Some(it.usr_cpu)), &percent));
    cells.push(text(cell.value(|it| Some(it.sys_cpu)), &percent));
    cells.push(text(
        cell.value(|it| cpu_percent(it, |cost| cost.vcpu_time)),
        &percent,
    ));
    cells.push(text(
        cell.value(|it| cpu_percent(it, |cost| cost.io_time)),
        &percent,
    ));
    let counts: [fn(&Figures) -> Option<f64>; 3] = [
        |it| per_command(it, |cost| cost.doorbell_exits),
        |it| per_command(it, |cost| cost.doorbell_wakeups),
        |it| per_command(it, |cost| cost.interrupts),
    ];
    for count in counts {
        cells.push(text(cell.value(count), &|value| format!("{value:.3}")));
    }
    cells
}

/// Three digits or more.
fn megabytes(value: f64) -> String {
    let digits = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// What ran and has no figures.
pub fn failures(results: &Results) -> Option<Table> {
    let mut table = Table {
        title: "Failed".into(),
        head: ["setting", "job", "round", "what", "said"]
            .map(str::to_owned)
            .to_vec(),
        rows: Vec::new(),
        words: 5,
    };
    for (run, failure) in results.failures() {
        table.rows.push(vec![
            run.setting.clone(),
            run.title(),
            run.round.to_string(),
            failure.what.clone(),
            failure.said.lines().last().unwrap_or_default().to_owned(),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Two sets of runs side by side.
pub fn comparison(comparison: &Comparison) -> Table {
    let head = [
        "job",
        "figure",
        &comparison.old,
        &comparison.new,
        "difference",
        "",
    ];
    let mut table = Table {
        title: format!("{} beside {}", comparison.new, comparison.old),
        head: head.map(str::to_owned).to_vec(),
        rows: Vec::new(),
        words: 2,
    };
    for pair in &comparison.pairs {
        let mut title = pair.title.clone();
        for difference in &pair.differences {
            table.rows.push(vec![
                std::mem::take(&mut title),
                difference.metric.name().to_owned(),
                difference.metric.text(difference.old.value),
                difference.metric.text(difference.new.value),
                difference.text(),
                difference.verdict().word().to_owned(),
            ]);
        }
    }
    table
}

/// Where the spreads of a comparison are from, and what has no partner.
pub fn remarks(comparison: &Comparison) -> Vec<String> {
    let spreads = comparison.pairs.iter().flat_map(|pair| &pair.differences);
    let mut sources: Vec<&str> = Vec::new();
    for (_, source) in spreads.filter_map(|difference| difference.spread) {
        if !sources.contains(&source.words()) {
            sources.push(source.words());
        }
    }
    let mut remarks = Vec::new();
    if !sources.is_empty() {
        remarks.push(format!(
            "± is the standard deviation {} of both, put together; \"better\" and \"worse\" are beyond \
             twice that.",
            sources.join(" or ")
        ));
    }
    for (names, which) in [
        (&comparison.only_old, &comparison.old),
        (&comparison.only_new, &comparison.new),
    ] {
        if !names.is_empty() {
            remarks.push(format!("Only in {which}: {}.", names.join("; ")));
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::super::{compare, samples, summary};
    use super::*;

    #[test]
    fn columns_are_under_their_heads() {
        let table = Table {
            title: "T|<".into(),
            head: ["name", "µs"].map(str::to_owned).to_vec(),
            rows: vec![
                ["a|b<".to_owned(), "1".to_owned()].to_vec(),
                ["c".to_owned(), "12345".to_owned()].to_vec(),
            ],
            words: 1,
        };
        assert_eq!(table.text(), "T|<\nname     µs\na|b<      1\nc     12345\n");
        assert_eq!(
            table.markdown(),
            "### T|&lt;\n\n| name | µs |\n| --- | ---: |\n| a\\|b&lt; | 1 |\n| c | 12345 |\n\n"
        );
        assert!(
            table
                .html()
                .contains("<td class=\"word\">a|b&lt;</td><td>1</td>")
        );
    }

    #[test]
    fn loads_have_a_row_for_each_depth_and_setting() {
        let results = samples::results();
        let loads = summary::loads(&results);
        let table = load(&loads[0], &results);
        assert!(table.rows.iter().all(|row| row.len() == table.head.len()));
        let lines: Vec<String> = table.rows.iter().map(|row| row.join(" ")).collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(
            lines[0],
            "1 poll-us=0 1.1k 4.51 45 µs 20 µs 40 µs 160 µs 900 µs 4 % 12 % 40 % 20 % 0.001 0.400 0.900"
        );
        assert!(
            lines[2].starts_with("1 host 2.2k") && lines[2].ends_with("– – – – –"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn columns_that_nobody_has_are_left_out() {
        let mut results = samples::results();
        results.settings.retain(|it| it.name == "host");
        let loads = summary::loads(&results);
        let table = load(&loads[0], &results);
        assert_eq!(table.head.last().unwrap(), "sys");
        assert!(table.rows.iter().all(|row| row.len() == table.head.len()));
    }

    #[test]
    fn names_move_no_cursor() {
        let table = Table {
            head: vec!["\u{1b}[2Jname".into()],
            ..Table::default()
        };
        assert_eq!(table.text(), "[2Jname\n");
    }

    #[test]
    fn failures_and_comparisons_are_told() {
        let results = samples::results();
        let failed = failures(&results).unwrap();
        assert_eq!(
            failed.rows,
            [[
                "host",
                "load/broken",
                "1",
                "fio ended with status 1",
                "fio: no such <engine>"
            ]]
        );
        let all = compare::settings(&results);
        let table = comparison(&all[0]);
        assert_eq!(
            table.rows[0][..4],
            ["load/qd1, depth 1", "IOPS", "1.1k", "1.65k"]
        );
        let remarks = remarks(&all[0]);
        assert!(
            remarks[0].contains("between rounds or between seconds of a round of both"),
            "{remarks:?}"
        );
    }
}
