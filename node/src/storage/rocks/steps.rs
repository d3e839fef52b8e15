//! Between which steps on the disk a crash may come. Nothing happens here but in tests, which look at the disk there.

#[cfg(not(test))]
pub(crate) fn passed(_: &'static str) {}

#[cfg(test)]
pub(crate) use self::watched::{passed, watch};

#[cfg(test)]
mod watched {
    use std::cell::RefCell;

    type Watcher = Box<dyn FnMut(&'static str)>;

    thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
    }

    /// Tells the watcher of this thread, if there is one.
    pub(crate) fn passed(step: &'static str) {
        WATCHER.with_borrow_mut(|watcher| {
            if let Some(watcher) = watcher {
                watcher(step);
            }
        });
    }

    /// Calls `watcher` after each step that `run` takes in this thread.
    pub(crate) fn watch<T>(
        watcher: impl FnMut(&'static str) + 'static,
        run: impl FnOnce() -> T,
    ) -> T {
        WATCHER.set(Some(Box::new(watcher)));
        let result = run();
        WATCHER.set(None);
        result
    }
}
