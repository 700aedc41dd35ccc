//! The verdict on made-up stories.

use super::*;

fn story(text: &str) -> Story {
    Story {
        text: text.to_owned(),
        aside: String::new(),
    }
}

fn told(plain: &str, accelerated: &str, redirected: bool) -> Told {
    Told::Stories {
        plain: story(plain),
        accelerated: story(accelerated),
        redirected,
    }
}

#[test]
fn verdicts() {
    use Verdict::Differs;
    use Verdict::Fails;
    use Verdict::NotChecked;
    let fionread = &[Risk::Fionread][..];
    let reason = || Told::NotTried("no namespace".to_owned());
    let cases: &[(&Check, Told, &[Risk], Verdict)] = &[
        (&redirect::CHECK, told("x", "x", true), &[], Verdict::Ok),
        (&redirect::CHECK, told("x", "y", true), &[], Fails),
        (&redirect::CHECK, Told::NotRedirected, &[], Fails),
        (&redirect::TO_WAITING, told("x", "x", false), &[], Fails),
        (&redirect::CHECK, reason(), &[], NotChecked),
        (&readiness::POLL, Told::NotRedirected, &[], NotChecked),
        (&fionread::TCP, Told::NotEnrolled, &[], NotChecked),
        // The same story on the stack shows nothing.
        (&readiness::POLL, told("x", "x", false), &[], NotChecked),
        (&fionread::TCP, told("8", "8", false), &[], Verdict::Ok),
        (&fionread::TCP, told("8", "0", false), &[], Fails),
        (&fionread::TCP, told("8", "0", false), fionread, Differs),
        (
            &fionread::REDIRECTED,
            told("8", "0", true),
            fionread,
            Differs,
        ),
        (&signals::CHECK, told("hello", "EAGAIN", true), &[], Differs),
    ];
    for (check, told, allowed, expected) in cases {
        let finding = check.judge(told, allowed);
        assert_eq!(finding.result, *expected, "{} {told:?}", check.topic.name);
    }
}

#[test]
fn each_check_has_a_name_of_its_own_and_drain_is_last() {
    let mut names: Vec<&str> = CHECKS.iter().map(|check| check.topic.name).collect();
    assert_eq!(names.last(), Some(&drain::CHECK.topic.name));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CHECKS.len());
}
