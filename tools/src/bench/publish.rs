//! `emberfs bench report`: the tables and plots of a page from the JSON files that `tools/bench/suite.py` or `peers.py` wrote.
//!
//! Files hold single measurements; every table cell and every point of a plot is the median of those that belong
//! to it, over all files of the directory. The page is made between two marker lines, so that what people
//! wrote around them stays; a page may have several pairs of markers, with names.

mod plot;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::cli::PublishArgs;
use crate::failure::{Context, Exit, Result, fail};
use crate::output::say;

use super::disk::median;
use plot::{Plot, Series};

/// A marker line: of the pair with this name, or of that without one.
fn marker(block: Option<&str>, end: &str) -> String {
    let name = block.map_or_else(String::new, |name| format!(" {name}"));
    format!("<!-- emberfs bench report{name}: {end} -->")
}

/// One file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Runs {
    /// Sentences about the machine and the run.
    about: Vec<String>,
    records: Vec<Record>,
}

/// One measurement.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Record {
    Cell {
        table: String,
        row: String,
        column: String,
        value: f64,
    },
    Point {
        plot: String,
        x_label: String,
        y_label: String,
        series: String,
        x: f64,
        value: f64,
    },
}

/// A list whose keys keep the order in which they came first.
#[derive(Debug)]
struct Ordered<T>(Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Default> Ordered<T> {
    fn at(&mut self, key: &str) -> &mut T {
        let at = self.0.iter().position(|(known, _)| known == key);
        let at = at.unwrap_or_else(|| {
            self.0.push((key.to_owned(), T::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

#[derive(Debug, Default)]
struct Table {
    columns: Ordered<()>,
    rows: Ordered<BTreeMap<String, Vec<f64>>>,
}

#[derive(Debug, Default)]
struct Points {
    x_label: String,
    y_label: String,
    /// Values by x; x as its bits, which order as the numbers do, none of them being negative.
    series: Ordered<BTreeMap<u64, Vec<f64>>>,
}

/// Everything, in the order in which it was measured.
#[derive(Debug, Default)]
struct Page {
    about: Ordered<()>,
    tables: Ordered<Table>,
    plots: Ordered<Points>,
}

/// Reads `args.runs`, writes `args.page` and the plots next to it.
pub(super) fn run(args: &PublishArgs) -> Result<Exit> {
    let page = read(&args.runs)?;
    let folder = args.page.with_extension("");
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut text = page.tables();
    if !page.plots.0.is_empty() {
        fs::create_dir_all(&folder).context(format!("cannot create {}", folder.display()))?;
    }
    for plot in page.plots() {
        let file = format!("{}.svg", slug(&plot.title));
        let path = folder.join(&file);
        fs::write(&path, plot.svg()).context(format!("cannot write {}", path.display()))?;
        let _ = write!(text, "\n![{}]({name}/{file})\n", plot.title);
    }
    let before = match fs::read_to_string(&args.page) {
        Ok(before) => before,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return fail(format!("cannot read {}: {error}", args.page.display())),
    };
    fs::write(&args.page, splice(&before, &text, args.block.as_deref()))
        .context(format!("cannot write {}", args.page.display()))?;
    say(format!("{} is up to date", args.page.display()))?;
    Ok(Exit::Success)
}

fn read(runs: &Path) -> Result<Page> {
    let what = || format!("cannot read {}", runs.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(runs).context(what())? {
        let path = entry.context(what())?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut page = Page::default();
    for path in &paths {
        let what = || format!("cannot read {}", path.display());
        let text = fs::read_to_string(path).context(what())?;
        page.add(serde_json::from_str(&text).context(what())?)?;
    }
    if page.tables.0.is_empty() && page.plots.0.is_empty() {
        return fail(format!(
            "no measurements in {}: run `make bench` first",
            runs.display()
        ));
    }
    Ok(page)
}

impl Page {
    fn add(&mut self, runs: Runs) -> Result<()> {
        for line in &runs.about {
            self.about.at(line);
        }
        for record in runs.records {
            match record {
                Record::Cell {
                    table,
                    row,
                    column,
                    value,
                } => {
                    let table = self.tables.at(&table);
                    table.columns.at(&column);
                    table.rows.at(&row).entry(column).or_default().push(value);
                }
                Record::Point {
                    plot,
                    x_label,
                    y_label,
                    series,
                    x,
                    value,
                } => {
                    if x.is_nan() || x.is_sign_negative() {
                        return fail(format!("{plot}: {x} is no place on an axis"));
                    }
                    let plot = self.plots.at(&plot);
                    plot.x_label = x_label;
                    plot.y_label = y_label;
                    let values = plot.series.at(&series).entry(x.to_bits());
                    values.or_default().push(value);
                }
            }
        }
        Ok(())
    }

    /// Markdown.
    fn tables(&self) -> String {
        let mut text = String::new();
        for (line, ()) in &self.about.0 {
            let _ = writeln!(text, "{line}  ");
        }
        for (title, table) in &self.tables.0 {
            let columns: Vec<_> = table.columns.0.iter().map(|(name, ())| name).collect();
            let _ = write!(text, "\n| {title} |");
            for column in &columns {
                let _ = write!(text, " {column} |");
            }
            let _ = writeln!(text, "\n|{}", "---|".repeat(columns.len() + 1));
            for (row, values) in &table.rows.0 {
                let _ = write!(text, "| {row} |");
                for column in &columns {
                    let values = values.get(*column);
                    let cell = values.map_or_else(
                        || "-".to_owned(),
                        |values| number(median(values.iter().copied())),
                    );
                    let _ = write!(text, " {cell} |");
                }
                text.push('\n');
            }
        }
        text
    }

    fn plots(&self) -> Vec<Plot> {
        let plots = self.plots.0.iter().map(|(title, points)| Plot {
            title: title.clone(),
            x_label: points.x_label.clone(),
            y_label: points.y_label.clone(),
            series: points
                .series
                .0
                .iter()
                .map(|(name, points)| Series {
                    name: name.clone(),
                    points: points
                        .iter()
                        .map(|(x, values)| (f64::from_bits(*x), median(values.iter().copied())))
                        .collect(),
                })
                .collect(),
        });
        plots.collect()
    }
}

/// `text` between the markers; at the end if there are none.
fn splice(page: &str, text: &str, block: Option<&str>) -> String {
    let (first, last) = (marker(block, "begin"), marker(block, "end"));
    let made = format!("{first}\n{}\n{last}", text.trim_end());
    let found = page.find(&first).and_then(|begin| {
        let end = begin + page[begin..].find(&last)? + last.len();
        Some(begin..end)
    });
    match found {
        Some(range) => format!("{}{made}{}", &page[..range.start], &page[range.end..]),
        None if page.is_empty() => format!("{made}\n"),
        None => format!("{}\n\n{made}\n", page.trim_end()),
    }
}

/// As few digits as tell something.
fn number(value: f64) -> String {
    if value.abs() < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

/// A file name.
fn slug(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: &str = r#"{"about": ["2 cores"], "records": [
        {"table": "MiB/s", "row": "read", "column": "floor", "value": 100},
        {"table": "MiB/s", "row": "read", "column": "floor", "value": 300},
        {"table": "MiB/s", "row": "read", "column": "floor", "value": 120},
        {"table": "MiB/s", "row": "write", "column": "native", "value": 2.5},
        {"plot": "Read, by jobs", "x_label": "jobs", "y_label": "MiB/s", "series": "native", "x": 1, "value": 5},
        {"plot": "Read, by jobs", "x_label": "jobs", "y_label": "MiB/s", "series": "native", "x": 8, "value": 9}
    ]}"#;

    #[test]
    fn a_page_gets_medians_and_keeps_what_people_wrote() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (runs, page) = (temp.path().join("runs"), temp.path().join("page.md"));
        fs::create_dir(&runs).expect("made");
        fs::write(runs.join("a.json"), RUNS).expect("written");
        fs::write(&page, "# Mine\n").expect("written");
        let args = PublishArgs {
            runs,
            page: page.clone(),
            block: None,
        };
        run(&args).expect("published");
        let once = fs::read_to_string(&page).expect("there");
        assert!(once.starts_with("# Mine\n"));
        assert!(
            once.contains("| MiB/s | floor | native |\n|---|---|---|\n"),
            "{once}"
        );
        assert!(
            once.contains("| read | 120 | - |\n| write | - | 2.50 |"),
            "{once}"
        );
        assert!(once.contains("![Read, by jobs](page/read-by-jobs.svg)"));
        let svg = fs::read_to_string(temp.path().join("page/read-by-jobs.svg")).expect("there");
        assert!(svg.starts_with("<svg") && svg.contains("native"));
        fs::write(&page, format!("{once}\nBelow\n")).expect("written");
        run(&args).expect("published");
        let twice = fs::read_to_string(&page).expect("there");
        assert_eq!(
            twice,
            format!("{once}\nBelow\n"),
            "the same again, in its place"
        );
    }

    #[test]
    fn blocks_with_names_keep_to_themselves() {
        let page = splice("# Mine\n", "one", None);
        let page = splice(&page, "two", Some("peers"));
        let page = format!("{page}\nBelow\n");
        let again = splice(&splice(&page, "1", None), "2", Some("peers"));
        assert_eq!(again, page.replace("one", "1").replace("two", "2"));
        assert_eq!(
            again.matches("emberfs bench report peers: begin").count(),
            1
        );
    }

    #[test]
    fn nothing_measured_is_a_failure() {
        let temp = tempfile::tempdir().expect("temporary directory");
        assert!(read(temp.path()).is_err());
        fs::write(temp.path().join("x.json"), "{\"records\": []}").expect("written");
        assert!(read(temp.path()).is_err(), "about is missing");
    }
}
