from experiments.figure1 import paper
from experiments.networks import mlp


def test_paper_tables_are_whole():
    for network in mlp.NETWORKS:
        assert len(paper.ACCURACY[network]) in (11, 12)
        for trace in paper.TRACES[network]:
            assert len(trace) == len(paper.PERCENTILE_STEPS)
