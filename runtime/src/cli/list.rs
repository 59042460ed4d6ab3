//! `cloister list`.

use std::fmt::Write as _;
use std::io::Write as _;

use cloister::state::{StateDir, StateError};
use cloister::users::Users;

use super::args::{ListFormat, ListOptions};
use super::state::View;
use super::{Fatal, Globals};

/// The heads of the table's columns.
const HEADS: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
/// The least width of a column, as in runc's table.
const WIDTH_MIN: usize = 12;
/// The least space between columns.
const SPACE: usize = 3;

pub(crate) fn list(globals: &Globals, options: &ListOptions) -> Result<u8, Fatal> {
    let users = Users::read();
    let mut views = Vec::new();
    for dir in StateDir::all(&globals.root)? {
        match View::of(&dir).and_then(|view| Ok((view, dir.owner()?))) {
            Ok((mut view, owner)) => {
                view.owner = users.name(owner);
                views.push(view);
            }
            // It is just being made, or just being removed.
            Err(StateError::NotFound(_)) => {}
            Err(e) => log::warn!("container {}: {:#}", dir.id(), anyhow::Error::new(e)),
        }
    }
    let text = if options.quiet {
        views.iter().map(|view| format!("{}\n", view.id)).collect()
    } else {
        match options.format {
            ListFormat::Table => table(&views),
            // As runc: no containers are no array.
            ListFormat::Json if views.is_empty() => "null\n".into(),
            ListFormat::Json => serde_json::to_string(&views)? + "\n",
        }
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(0)
}

fn table(views: &[View]) -> String {
    let heads = HEADS.map(String::from);
    let rows: Vec<[String; 6]> = std::iter::once(heads)
        .chain(views.iter().map(|view| {
            [
                view.id.clone(),
                view.pid.to_string(),
                view.status.into(),
                view.bundle.clone(),
                view.created.clone(),
                view.owner.clone(),
            ]
        }))
        .collect();
    let mut widths = [WIDTH_MIN; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + SPACE);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_runcs() {
        assert_eq!(
            table(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
    }
}
