//! The verdict for people.

use super::{Outcome, Report};
use crate::cli::screen::{age, table};
use std::time::Duration;

impl Report {
    /// All tables and the last word.
    pub(crate) fn render(&self) -> String {
        let mut parts = vec![self.faults_table(), self.changes_table(), self.checkers_table(), self.promises_table()];
        if !self.errors.is_empty() {
            let rows = self.errors.iter().map(|(code, times)| vec![code.clone(), times.to_string()]);
            parts.push(table(&["ERROR SEEN BY CLIENTS", "TIMES"], &[1], rows));
        }
        if !self.left_out.is_empty() {
            let rows = self.left_out.iter().map(|left| vec![left.kind.clone(), left.why.clone(), left.fix.clone()]);
            parts.push(table(&["LEFT OUT", "WHY", "FIX"], &[], rows));
        }
        parts.push(self.last_word());
        parts.retain(|part| !part.is_empty());
        parts.join("\n\n")
    }

    fn faults_table(&self) -> String {
        let ms = |span: Option<u64>| span.map_or_else(|| "-".into(), |ms| format!("{:.1} s", ms as f64 / 1_000.0));
        let rows = self.faults.iter().map(|row| {
            let well = row.happened > 0 && row.seen == row.happened;
            vec![
                format!("{} {}", if well { "✔" } else { "✕" }, row.kind),
                format!("{}/{}", row.happened, row.planned),
                row.seen.to_string(),
                row.leaders.to_string(),
                ms(row.gap_median_ms),
                ms(row.gap_worst_ms),
                row.evidence.clone(),
            ]
        });
        table(
            &["FAULT", "MADE", "SEEN", "LEADERS", "NO WRITES", "WORST", "EVIDENCE (ONE OF THEM)"],
            &[1, 2, 3, 4, 5],
            rows,
        )
    }

    fn changes_table(&self) -> String {
        if self.changes.is_empty() {
            return String::new();
        }
        let seconds = |span: Option<u64>| span.map_or_else(|| "-".into(), |ms| format!("{:.1} s", ms as f64 / 1_000.0));
        let rows = self.changes.iter().map(|row| {
            vec![
                format!("{} {}", if row.happened > 0 { "✔" } else { "✕" }, row.kind),
                format!("{}/{}", row.happened, row.planned),
                row.during_faults.to_string(),
                row.asked_most.to_string(),
                seconds(row.median_ms),
                seconds(row.worst_ms),
                row.evidence.clone(),
            ]
        });
        table(
            &["CHANGE", "MADE", "IN FAULTS", "ASKED", "TOOK", "WORST", "EVIDENCE (ONE OF THEM)"],
            &[1, 2, 3, 4, 5],
            rows,
        )
    }

    fn checkers_table(&self) -> String {
        let rows = self.checkers.iter().map(|row| {
            vec![
                format!("{} {}", if row.holds { "✔" } else { "✕" }, row.checker),
                row.operations.to_string(),
                row.premises.to_string(),
                if row.holds { "holds".into() } else { row.detail.clone() },
            ]
        });
        table(&["CHECKER", "OPERATIONS", "PREMISES", "VERDICT"], &[1, 2], rows)
    }

    fn promises_table(&self) -> String {
        let rows = self
            .promises
            .iter()
            .map(|row| vec![format!("{} {}", if row.holds { "✔" } else { "✕" }, row.promise), row.measured.clone()]);
        table(&["PROMISE", "MEASURED"], &[], rows)
    }

    fn last_word(&self) -> String {
        let made: u32 = self.faults.iter().map(|row| row.happened).sum();
        let kinds = self.faults.iter().filter(|row| row.happened > 0).count();
        let changed: u32 = self.changes.iter().map(|row| row.happened).sum();
        let changes = match self.changes.iter().filter(|row| row.happened > 0).count() {
            0 => String::new(),
            kinds => format!(" and {changed} changes of {kinds} kinds"),
        };
        let what = format!(
            "{made} faults of {kinds} kinds{changes} on {} nodes in {}, {} operations of clients, seed {}",
            self.nodes,
            age(Duration::from_secs(self.seconds)),
            self.operations,
            self.seed
        );
        let list = |title: &str, reasons: &[String]| {
            let lines: Vec<String> = reasons.iter().map(|reason| format!("  {title} {reason}")).collect();
            lines.join("\n")
        };
        let mut text = match self.outcome {
            Outcome::Proven => format!("✔ PROVEN: {what}"),
            Outcome::Failed => format!("✕ FAILED: {what}\n{}", list("✕", &self.failures)),
            Outcome::Incomplete => format!("▲ INCOMPLETE: nothing was violated, but not all was tried: {what}"),
        };
        if !self.missing.is_empty() {
            text.push('\n');
            text.push_str(&list("▲", &self.missing));
        }
        if self.outcome != Outcome::Proven {
            text.push_str(&format!("\nRepeat it: {}", self.repeat));
        }
        text
    }
}
