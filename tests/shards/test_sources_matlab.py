import base64
import random

import pytest

from shards.sources.matlab import read_structs
from tests.shards.archives import mat_file, meta_mat

# scipy.io.savemat("meta.mat", {"synsets": four structs}, do_compression=True), scipy 1.17.1: another writer than ours.
SCIPY = base64.b85decode(
    "O+i#lK|&xkE-)ZXK~ybfX>4U6P;6mzW^ZzBIv{Xwb7^=iAVYFxVRU6=Aa8CuAX9a2AWm;~ATlx_Ff=+cHaayhATlsAHUIzs00000"
    "000000000000000000000000000000000000000000000000000000000Bu&4*&oF!T|sPc%1E(K~KUk6vwL~LZU>yi1E@7z+nRv"
    "IZ2|2kr+eN=#ey|tc{~HZ5QO`(VG`Op`U<{VCxFZMl-{_=}X?W|0Dn3`ntDK0RVVq0E+5dQn?P2*fhGJa?RwHN-<#qOQC)*fIU-x"
    "QQ5t`xw}5EJ8r$-z0iRBtK__hal{8AT?oQRd@8Vb)b|Mu2OP7H!Y46jFf987(||~0ksMLhry~?#0V=9^3YPs8t$x;0siSP_NzBf)"
    "zmxJ8zVMe*{#~P)Q+M5V>$Gj^n&V|~suoA<2P)w(daA*@IDEtcj*!nINySgrRk3(lixCP#7;rq%Sdepn62Ft-2bO>C%X{CI{k>@?"
    "=lwgY&xPA;I<1pts*kL>*ta-ZOU!&ygSV9V2ugii@_HG(1B-X4a>%hDV<a($Ln;V-d!E7&@c{qEeuKX{C#8II(l~CkQhj7S*CUIg"
    "br6LE{XlE*9C0KBjRiz8M=}-*Zr1v?Ew0w)JEG{x=lFj<R`7eTIp#x!+iE)B^zjv^XmPa0Oj0@d*&OUxeyt@z5{?P=38W(Lewz2i"
    "%kXbl{_4U%J2MxZG;j6wH1hsWfOnNEd7S"
)


def test_what_another_writer_wrote() -> None:
    rows = read_structs(SCIPY, "synsets")
    assert [(row["ILSVRC2012_ID"], row["WNID"], row["words"], row["num_children"]) for row in rows] == [
        ([1.0], "n02119789", "kit fox, Vulpes macrotis", [0.0]),
        ([2.0], "n01440764", "tench, Tinca tinca", [0.0]),
        ([3.0], "n01443537", "goldfish, Carassius auratus", [0.0]),
        ([1001.0], "n00001740", "entity", [3.0]),
    ]
    assert (rows[1]["gloss"], rows[0]["children"], rows[3]["children"]) == (
        "freshwater fish — large",
        [],
        [1.0, 2.0, 3.0],
    )


@pytest.mark.parametrize("compress", [True, False])
def test_texts_and_numbers_of_every_length(compress: bool) -> None:
    rows = [{"a": "x" * length, "b": tuple(range(length)), "c": length + 0.5} for length in range(12)]
    found = read_structs(mat_file("v", rows, compress), "v")
    assert found == [{"a": row["a"], "b": [float(n) for n in row["b"]], "c": [row["c"]]} for row in rows]


def test_what_is_no_such_file_is_refused() -> None:
    whole = meta_mat(compress=False)
    for data in (
        b"",
        whole[:100],
        whole[:124] + b"\x01\x00MI" + whole[128:],
        whole[:124] + b"\x00\x02IM" + whole[128:],
    ):
        with pytest.raises(ValueError, match="no level 5 MAT-file"):
            read_structs(data, "synsets")
    with pytest.raises(ValueError, match="no struct array 'other'"):
        read_structs(whole, "other")


def test_no_damage_gets_past_as_anything_but_a_valueerror() -> None:
    generator = random.Random(0)
    refused = 0
    for compress in (True, False):
        whole = meta_mat(compress)
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(generator.choice((1, 4))):
                data[generator.randrange(128, len(data))] = generator.randrange(256)
            cut = bytes(data[: generator.randrange(128, len(data) + 1)])
            for damaged in (bytes(data), cut):
                try:
                    read_structs(damaged, "synsets")
                except ValueError:
                    refused += 1
    assert refused > 300
