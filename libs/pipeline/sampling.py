"""From a config to its samplers: that of `config.sample`, and that of `config.metrics` for previews and scores in training.

What does not go together is refused here, in the words of the command line, when a pipeline is built: before any training.
"""

from libs import diffusion
from libs.diffusion import samplers
from libs.diffusion.grids import OptionError

OPTIONS = ("spacing", *samplers.OFF)  # fields of config.sample, where a config has them


def make_sampler(config, schedule, *, algorithm="", steps=0):
    """The sampler of `config.sample`, or of another algorithm and number of steps, as a `samplers.Prepared`.

    Spacing and options of config.sample are those of its own algorithm: another one takes its published spacing and
    none of them.

    Args:
        config: its sections sample and denoiser.
        schedule: of diffusion.schedule.
        algorithm, steps: in place of those of config.sample; from config.metrics where they stand there.

    Raises:
        ValueError: what does not go together, by the names of the command line, with what to set instead.
    """
    replaced = bool(algorithm or steps)
    name, steps = algorithm or config.sample.algorithm, steps or config.sample.sample_steps
    options = given_options(config, name)
    spacing = options.pop("spacing", "")
    try:
        made = samplers.make(name, steps, spacing, schedule, **options)
        if made.options.get("variance") == "learned" and not config.denoiser.get("learned_var", False):
            raise OptionError("variance='learned' is of networks that learned it, with config.denoiser.learned_var=True",
                              "variance", ways=({"variance": "small"}, {"variance": "large"}))
    except OptionError as error:
        values = dict(name=name, steps=steps, spacing=spacing) | options
        raise ValueError(_in_words_of(config, error, values, replaced)) from error
    return made


def check_samplers(config, schedule=None):
    """Raise ValueError unless the samplers of `config.sample` and, where there is one, of `config.metrics` can sample.

    Cheap: nothing is built but a schedule, so that it can stand before anything that takes time.
    """
    schedule = diffusion.schedule(**config.schedule) if schedule is None else schedule
    make_sampler(config, schedule)
    if "algorithm" in config.get("metrics", {}):
        make_sampler(config, schedule, algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)


def given_options(config, name):
    """{option: value} that config.sample gives the sampler `name`, its spacing among them."""
    if name != config.sample.algorithm:
        return {}
    return {key: config.sample[key] for key in OPTIONS if key in config.sample}


def _in_words_of(config, error, values, replaced):
    """The message of an OptionError for a person who types options."""
    ours = config.get("metrics", {})
    of_metrics = replaced and (values["name"], values["steps"]) == (ours.get("algorithm"), ours.get("sample_steps"))
    section = "metrics" if of_metrics else "sample"
    paths = {"name": f"config.{section}.algorithm", "steps": f"config.{section}.sample_steps"}
    paths |= {key: f"config.sample.{key}" for key in OPTIONS if key in config.sample}
    about = [f"{paths[option]} is {values[option]!r}" for option in error.options if option in paths]
    ways = [" ".join(f"--{paths[key]}={value}" for key, value in way.items())
            for way in error.ways if way.keys() <= paths.keys()]
    # blanks alone between options, for who copies one
    advice = f". Set {' or '.join(ways[:4])}" if ways else ""
    return f"{', '.join(about) or section}: {error}{advice}"
