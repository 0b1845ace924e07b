from mechsafety.report.palette import ARMS, colors, in_order


def _luminance(color: str) -> float:
    parts = [byte / 255 for byte in bytes.fromhex(color[1:])]
    light = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]


def test_numbers_are_an_order_in_gray_too_and_stand_out_from_paper() -> None:
    for count in (1, 2, 5, 12, 32):
        shades = in_order([str(i) for i in range(count)])
        light = [_luminance(color) for color in shades.values()]
        assert len(set(shades.values())) == count
        assert light == sorted(light)
        assert all(1.05 / (value + 0.05) >= 3 for value in light)


def test_the_ends_of_the_scale_are_the_first_and_last_number_whatever_their_size() -> None:
    few, many = in_order(["0", "1"]), in_order(["0.25", "0.5", "8"])
    assert few["0"] == many["0.25"]
    assert few["1"] == many["8"]
    assert many["0.5"] == "#b5367a"  # the middle by rank


def test_arms_keep_their_colors() -> None:
    assert colors("arm", ["other", "lat"])["lat"] == ARMS["lat"]
    assert colors("arm", ["other"])["other"] not in ARMS.values()


def test_every_arm_has_a_color_of_its_own_that_stands_out_from_paper() -> None:
    assert {"base", "dpo"} < ARMS.keys()
    assert len({*ARMS.values(), *colors("arm", ["other"]).values()}) == len(ARMS) + 1
    assert all(1.05 / (_luminance(color) + 0.05) >= 3 for color in ARMS.values())
