//! Tables in Markdown, and their place in a document. Pure.

/// A table that is built row by row.
#[derive(Debug, Clone)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these columns.
    pub fn new(head: impl IntoIterator<Item = impl Into<String>>) -> Table {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// One more row; as many cells as there are columns.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.head.len(), "a row of {cells:?} under {:?}", self.head);
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rule: Vec<String> = self.head.iter().map(|_| "---".to_owned()).collect();
        writeln!(f, "| {} |", self.head.join(" | "))?;
        writeln!(f, "|{}|", rule.join("|"))?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}

/// The document with what stands between the two marks of a section replaced.
pub fn replace_section(document: &str, section: &str, text: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {section}: begin -->\n"), format!("<!-- {section}: end -->"));
    let missing = |mark: &str| format!("the mark `{}` is missing", mark.trim());
    let from = document.find(&begin).ok_or_else(|| missing(&begin))? + begin.len();
    let to = document[from..].find(&end).ok_or_else(|| missing(&end))? + from;
    Ok(format!("{}{}\n{}", &document[..from], text.trim_end(), &document[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_head_a_rule_and_its_rows() {
        let mut table = Table::new(["workload", "bare"]);
        table.row(["find", "80 ms"]);
        assert_eq!(table.to_string(), "| workload | bare |\n|---|---|\n| find | 80 ms |\n");
    }

    #[test]
    fn only_the_section_that_was_measured_is_replaced() {
        let document =
            "# B\n<!-- guard: begin -->\nold\n<!-- guard: end -->\nwords\n<!-- run: begin -->\nkept\n<!-- run: end -->\n";
        let new = replace_section(document, "guard", "new\n\n").unwrap();
        assert_eq!(
            new,
            "# B\n<!-- guard: begin -->\nnew\n<!-- guard: end -->\nwords\n<!-- run: begin -->\nkept\n<!-- run: end -->\n"
        );
        assert_eq!(replace_section(&new, "guard", "new"), Ok(new.clone()), "a second time changes nothing");
        assert_eq!(replace_section(&new, "server", ""), Err("the mark `<!-- server: begin -->` is missing".into()));
    }
}
