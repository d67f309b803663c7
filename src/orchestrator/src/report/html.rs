//! The report as one HTML file: no scripts, nothing from elsewhere, pictures inside, fit for a screen and for paper.
//!
//! Promise: every text of a report goes through [`Page::text`], which escapes it, so neither a VM's name nor a console's
//! text can become markup. [`POLICY`] is the second line: should markup get in, a browser runs and loads nothing.

use std::fmt::Write as _;

use super::check::seconds;
use super::{Cleanup, Machine, Report, Step, Verdict, digest};

/// Content security policy of the page; sent as a header, and inside the file for when it is kept.
pub const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("style.css");

/// The whole file.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = Page::default();
    page.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw(&format!(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n"
    ));
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"referrer\" content=\"no-referrer\">\n<title>");
    page.text(&report.title);
    page.raw("</title>\n<style>\n")
        .raw(STYLE)
        .raw("</style>\n</head>\n<body>\n<main>\n");
    head(&mut page, report);
    course(&mut page, report);
    page.raw("<section aria-labelledby=\"machines\">\n<h2 id=\"machines\">Virtual machines</h2>\n");
    for machine in &report.virtual_machines {
        self::machine(&mut page, machine);
    }
    page.raw("</section>\n");
    problems(&mut page, report);
    steps(&mut page, report);
    if let Some(clean) = &report.cleanup {
        cleanup(&mut page, clean);
    }
    page.raw("</main>\n<footer>\n<p>SHA-256 of this report: <span class=\"mono\">");
    page.text(&digest(report));
    page.raw("</span></p>\n<p>Made over the member <span class=\"mono\">report</span> of the JSON form, as compact JSON with sorted keys: <span class=\"mono\">jq -cSj .report report.json | sha256sum</span> gives the same. All times are UTC.</p>\n</footer>\n</body>\n</html>\n");
    page.0
}

#[derive(Default)]
struct Page(String);

// === impl Page ===

impl Page {
    /// Markup of ours.
    fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text of anybody.
    fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    /// `<tag class="class">text</tag>`; `tag` and `class` are ours.
    fn element(&mut self, tag: &str, class: &str, text: &str) -> &mut Self {
        if class.is_empty() {
            self.raw(&format!("<{tag}>"));
        } else {
            self.raw(&format!("<{tag} class=\"{class}\">"));
        }
        self.text(text).raw(&format!("</{tag}>"))
    }

    fn badge(&mut self, verdict: Verdict) -> &mut Self {
        let class = format!("badge {verdict:?}");
        self.element("span", &class, words(verdict))
    }

    /// A term with its value; nothing for an empty value.
    fn fact(&mut self, term: &str, value: &str) -> &mut Self {
        if value.is_empty() {
            return self;
        }
        self.element("dt", "", term)
            .element("dd", "", value)
            .raw("\n")
    }

    fn id(&mut self, term: &str, value: &str) -> &mut Self {
        if value.is_empty() {
            return self;
        }
        self.element("dt", "", term)
            .element("dd", "mono", value)
            .raw("\n")
    }
}

fn words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotChecked => "Not checked",
        Verdict::Passed => "Passed",
        Verdict::PassedWithRemarks => "Passed with remarks",
        Verdict::InProgress => "In progress",
        Verdict::Cancelled => "Cancelled",
        Verdict::Failed => "Failed",
    }
}

/// `2031-03-04T05:06:07.123Z` as `2031-03-04 05:06:07`.
fn time(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    let whole = text.split(['.', 'Z']).next().unwrap_or_default();
    whole.replacen('T', " ", 1)
}

fn or_dash(ms: Option<i64>) -> String {
    ms.map_or_else(|| "–".to_owned(), seconds)
}

fn head(page: &mut Page, report: &Report) {
    page.raw("<header>\n");
    page.element(
        "p",
        "kicker",
        &format!("Disaster recovery report · vault {}", report.subject.vault),
    );
    page.element("h1", "", &report.title).raw("\n");
    page.raw(&format!(
        "<div class=\"verdict {:?}\" role=\"status\">",
        report.verdict
    ));
    page.badge(report.verdict)
        .element("p", "", &report.summary)
        .raw("</div>\n");
    let figures = &report.figures;
    page.raw("<dl class=\"figures\">\n");
    for (term, value) in [
        ("Slowest RTO", or_dash(figures.worst_rto_ms)),
        ("Greatest RPO", or_dash(figures.worst_rpo_ms)),
        (
            "Machines booted",
            format!("{} of {}", figures.booted, figures.machines),
        ),
        ("Operation took", or_dash(report.run.took_ms)),
    ] {
        page.raw("<div>")
            .element("dt", "", term)
            .element("dd", "", &value)
            .raw("</div>\n");
    }
    page.raw("</dl>\n</header>\n");
}

fn course(page: &mut Page, report: &Report) {
    let run = &report.run;
    page.raw("<section aria-labelledby=\"run\">\n<h2 id=\"run\">What was done</h2>\n<dl class=\"facts\">\n");
    page.fact("Operation", &format!("{} ({})", run.operation, run.state));
    page.fact(&report.subject.kind, &report.subject.name);
    page.fact("Requested", &time(run.requested.as_deref()));
    page.fact(
        "Requested by",
        if run.requested_by.is_empty() {
            "not recorded"
        } else {
            &run.requested_by
        },
    );
    page.fact("Ended", &time(run.ended.as_deref()));
    page.fact(
        if report.network.isolated {
            "Network: isolated"
        } else {
            "Network: connected"
        },
        &report.network.statement,
    );
    page.fact("Orchestrator", &run.orchestrator_version);
    page.id("Resource", &report.subject.id)
        .id("Job", &run.job)
        .id("Request", &run.activity);
    page.raw("</dl>\n</section>\n");
}

fn machine(page: &mut Page, machine: &Machine) {
    page.raw("<article>\n<header>")
        .element("h3", "", &machine.name);
    page.badge(machine.verdict).raw("</header>\n");
    timeline(page, machine);
    page.raw("<h4>Recovery</h4>\n<dl class=\"facts\">\n");
    let point = &machine.point;
    let kind = match point.kind.as_str() {
        "ApplicationConsistent" => "application-consistent",
        "CrashConsistent" => "crash-consistent",
        _ => "kind not recorded",
    };
    let age = point.age_ms.map_or_else(String::new, |age| {
        format!(", {} old at the request", seconds(age))
    });
    page.fact(
        "Recovery point",
        &format!("{} ({kind}{age})", time(point.time.as_deref())),
    );
    let every = machine.policy_frequency_seconds;
    let every = every.map_or_else(String::new, |every| format!(" (a point every {every} s)"));
    if !machine.policy.is_empty() {
        page.fact("Policy", &format!("{}{every}", machine.policy));
    }
    page.fact("Recovered as", &machine.recovered_name);
    let engine = if machine.engine_version.is_empty() {
        machine.host.clone()
    } else {
        format!("{}, engine {}", machine.host, machine.engine_version)
    };
    page.fact("Recovery host", &engine);
    page.fact("Group", &machine.group.to_string());
    page.id("Protected item", &machine.item)
        .id("Point", point.id.rsplit('/').next().unwrap_or_default());
    page.raw("</dl>\n<h4>Checks</h4>\n<table>\n<thead><tr><th scope=\"col\">Check</th><th scope=\"col\">Result</th><th scope=\"col\">Finding</th></tr></thead>\n<tbody>\n");
    for check in &machine.checks {
        page.raw("<tr>")
            .element("td", "", &check.name)
            .raw("<td>")
            .badge(check.verdict)
            .raw("</td>");
        page.element("td", "", &check.finding).raw("</tr>\n");
    }
    page.raw("</tbody>\n</table>\n");
    evidence(page, machine);
    page.raw("</article>\n");
}

/// From the request to the first instruction, and on to the first output, as a bar to scale.
fn timeline(page: &mut Page, machine: &Machine) {
    let Some(started) = machine.rto.started_ms else {
        page.raw("<p class=\"soft\">It was never started, so there is no recovery time.</p>\n");
        return;
    };
    let booting = machine
        .rto
        .booted_ms
        .map(|booted| booted.saturating_sub(started).max(0));
    page.raw("<div class=\"bar\" aria-hidden=\"true\">");
    let _ = write!(
        page.0,
        "<span class=\"one\" style=\"flex-grow:{}\"></span>",
        started.max(1)
    );
    if let Some(booting) = booting {
        let _ = write!(
            page.0,
            "<span class=\"two\" style=\"flex-grow:{}\"></span>",
            booting.max(1)
        );
    }
    page.raw("</div>\n<ul class=\"legend\"><li><i class=\"one\"></i>");
    page.text(&format!(
        "request → first instruction: {}",
        seconds(started)
    ))
    .raw("</li>");
    if let Some(booting) = booting {
        page.raw("<li><i class=\"two\"></i>")
            .text(&format!("→ first output: {}", seconds(booting)))
            .raw("</li>");
    }
    if let Some(booted) = machine.rto.booted_ms {
        page.raw("<li><strong>")
            .text(&format!("RTO {}", seconds(booted)))
            .raw("</strong></li>");
    }
    if let Some(age) = machine.point.age_ms {
        page.raw("<li><strong>")
            .text(&format!("RPO {}", seconds(age)))
            .raw("</strong></li>");
    }
    page.raw("</ul>\n");
}

fn evidence(page: &mut Page, machine: &Machine) {
    let Some(seen) = &machine.evidence else {
        return;
    };
    let at = time(seen.time.as_deref());
    if !seen.screenshot_png.is_empty() {
        let base64 = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '+' | '/' | '=')
        };
        page.raw("<h4>Display</h4>\n<figure><img alt=\"Screenshot of ")
            .text(&machine.recovered_name);
        let _ = write!(
            page.0,
            "\" width=\"{}\" height=\"{}\" src=\"data:image/png;base64,",
            seen.width, seen.height
        );
        page.0.extend(
            seen.screenshot_png
                .chars()
                .filter(|character| base64(*character)),
        );
        page.raw("\"><figcaption>")
            .text(&format!("What the display showed at {at}"))
            .raw("</figcaption></figure>\n");
    }
    if !seen.console.is_empty() {
        page.raw("<h4>End of the console</h4>\n")
            .element("pre", "mono", &seen.console)
            .raw("\n");
    }
    if !seen.problem.is_empty() {
        page.element("p", "soft", &format!("Missing evidence: {}.", seen.problem))
            .raw("\n");
    }
}

fn problems(page: &mut Page, report: &Report) {
    if report.problems.is_empty() {
        return;
    }
    page.raw("<section aria-labelledby=\"problems\">\n<h2 id=\"problems\">What went wrong</h2>\n");
    for problem in &report.problems {
        page.raw("<div class=\"problem\"><p><strong>")
            .text(&problem.message)
            .raw("</strong> ");
        page.element("span", "mono soft", &problem.code)
            .raw("</p>\n");
        for (term, text) in [
            ("Possible cause", &problem.causes),
            ("Next step", &problem.action),
        ] {
            if !text.is_empty() {
                page.raw("<p>")
                    .element("span", "soft", &format!("{term}: "))
                    .text(text)
                    .raw("</p>\n");
            }
        }
        page.raw("</div>\n");
    }
    page.raw("</section>\n");
}

fn steps(page: &mut Page, report: &Report) {
    page.raw("<section aria-labelledby=\"steps\">\n<h2 id=\"steps\">Steps</h2>\n<table>\n<thead><tr><th scope=\"col\">Step</th><th scope=\"col\">State</th><th scope=\"col\">Started</th><th scope=\"col\" class=\"number\">Took</th></tr></thead>\n<tbody>\n");
    for step in &report.steps {
        row(page, step, false);
    }
    page.raw("</tbody>\n</table>\n</section>\n");
}

fn row(page: &mut Page, step: &Step, below: bool) {
    let class = match step.state.as_str() {
        "Succeeded" => "Passed",
        "Failed" => "Failed",
        "Cancelled" => "Cancelled",
        "InProgress" => "InProgress",
        _ => "NotChecked",
    };
    page.raw(if below {
        "<tr class=\"below\">"
    } else {
        "<tr>"
    });
    page.element("td", "", &step.name)
        .element("td", class, &step.state);
    page.element("td", "time", &time(step.started.as_deref()));
    page.element("td", "number", &or_dash(step.took_ms))
        .raw("</tr>\n");
    for child in &step.steps {
        row(page, child, true);
    }
}

fn cleanup(page: &mut Page, clean: &Cleanup) {
    page.raw("<section aria-labelledby=\"cleanup\">\n<h2 id=\"cleanup\">Clean-up</h2>\n<dl class=\"facts\">\n");
    let state = match clean.state.as_str() {
        "Done" => "The test virtual machines and their files were removed.",
        "TakenBack" => {
            "The drill did not come to its end; it took its test virtual machines back itself."
        }
        _ => "Not yet: the test virtual machines are still there.",
    };
    page.fact("State", state)
        .fact("When", &time(clean.time.as_deref()));
    if clean.state == "Done" {
        page.fact(
            "Requested by",
            if clean.requested_by.is_empty() {
                "not recorded"
            } else {
                &clean.requested_by
            },
        );
    }
    page.fact("Notes", &clean.notes).id("Job", &clean.job);
    page.raw("</dl>\n</section>\n");
}
