//! What a person sees while a verb takes long: a spinner on a terminal, a line now and then elsewhere.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// A step that takes longer than this is announced where there is no terminal.
const PLAIN_AFTER: Duration = Duration::from_secs(2);
/// How often the spinner moves.
const TICK: Duration = Duration::from_millis(100);

/// The progress of one verb, on standard error. Disappears when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: Option<PlainReporter>,
}

#[derive(Debug)]
struct PlainReporter {
    step: tokio::sync::watch::Sender<Cow<'static, str>>,
    task: tokio::task::JoinHandle<()>,
}

impl Progress {
    /// Must be called within a tokio runtime.
    pub(crate) fn start(step: impl Into<Cow<'static, str>>) -> Self {
        let step = step.into();
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(step);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            return Self { bar, plain: None };
        }
        let (sender, receiver) = tokio::sync::watch::channel(step);
        let task = tokio::spawn(report(receiver));
        Self {
            bar: ProgressBar::hidden(),
            plain: Some(PlainReporter { step: sender, task }),
        }
    }

    /// What is being done now.
    pub(crate) fn step(&self, step: impl Into<Cow<'static, str>>) {
        match &self.plain {
            Some(plain) => {
                plain.step.send_replace(step.into());
            }
            None => self.bar.set_message(step),
        }
    }

    /// A line that stays.
    pub(crate) fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if let Some(plain) = &self.plain {
            plain.task.abort();
        }
    }
}

/// Prints a step once it lasts; counters that change all the time are printed at that pace.
async fn report(mut steps: tokio::sync::watch::Receiver<Cow<'static, str>>) {
    loop {
        tokio::time::sleep(PLAIN_AFTER).await;
        eprintln!("{} …", *steps.borrow_and_update());
        if steps.changed().await.is_err() {
            return;
        }
    }
}
